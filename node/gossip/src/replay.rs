//! Refuses datagrams that were seen before, in bounded memory, for ever.
//!
//! Every sender session (one random id per process and run of its counter) has a sliding window over its counter. A
//! session may be forgotten once its newest datagram is older than the clock tolerance, since every datagram of it is
//! then refused for its age. If the table is full before that, the session that has been silent longest is evicted,
//! and a floor rises to its newest time: datagrams of unknown sessions must be newer than the floor.

use std::collections::HashMap;

/// Counters remembered per session. A sender's counter is shared by all its peers; at 1,000 nodes and six datagrams
/// an interval this still tolerates datagrams that are minutes late.
pub const WINDOW: u32 = 2048;
/// Maximum number of sessions: four incarnations of every node of the largest fleet that chitchat supports. At about
/// 300 bytes each some 3 MB at most.
pub const MAX_SESSIONS: usize = 10_000;

const WORDS: usize = (WINDOW / 64) as usize;

/// One run of a sender's counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 8]);

#[derive(Debug)]
struct Window {
    highest: u32,
    newest_ms: u64,
    /// Bit `c % WINDOW` is set if counter `c` in `(highest - WINDOW, highest]` was seen.
    seen: [u64; WORDS],
}

impl Window {
    fn new() -> Self {
        Self { highest: 0, newest_ms: 0, seen: [0; WORDS] }
    }

    fn bit(counter: u32) -> (usize, u64) {
        let slot = counter % WINDOW;
        ((slot / 64) as usize, 1 << (slot % 64))
    }

    fn is_fresh(&self, counter: u32) -> bool {
        if counter > self.highest {
            return true;
        }
        let (word, bit) = Self::bit(counter);
        self.highest - counter < WINDOW && self.seen[word] & bit == 0
    }

    fn mark(&mut self, counter: u32, sent_ms: u64) {
        if counter > self.highest {
            if counter - self.highest >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                for skipped in self.highest + 1..=counter {
                    let (word, bit) = Self::bit(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.highest = counter;
        }
        let (word, bit) = Self::bit(counter);
        self.seen[word] |= bit;
        self.newest_ms = self.newest_ms.max(sent_ms);
    }
}

/// All recent sessions. One per opener.
#[derive(Debug)]
pub struct ReplayGuard {
    sessions: HashMap<SessionId, Window>,
    max_sessions: usize,
    floor_ms: u64,
}

impl Default for ReplayGuard {
    fn default() -> Self {
        Self::with_capacity(MAX_SESSIONS)
    }
}

impl ReplayGuard {
    /// A guard that remembers at most this many sessions.
    pub fn with_capacity(max_sessions: usize) -> Self {
        Self { sessions: HashMap::new(), max_sessions: max_sessions.max(1), floor_ms: 0 }
    }

    /// Whether this datagram has not been seen. Changes nothing, so that a forged datagram leaves no trace: call it
    /// before opening the datagram, and [`ReplayGuard::mark`] after.
    pub fn is_fresh(&self, session: SessionId, counter: u32, sent_ms: u64) -> bool {
        match self.sessions.get(&session) {
            Some(window) => window.is_fresh(counter),
            None => sent_ms > self.floor_ms,
        }
    }

    /// Remembers an authentic datagram. `horizon_ms` is the oldest send time that is still accepted.
    pub fn mark(&mut self, session: SessionId, counter: u32, sent_ms: u64, horizon_ms: u64) {
        if !self.sessions.contains_key(&session) && self.sessions.len() >= self.max_sessions {
            self.make_room(horizon_ms);
        }
        self.sessions.entry(session).or_insert_with(Window::new).mark(counter, sent_ms);
    }

    fn make_room(&mut self, horizon_ms: u64) {
        self.sessions.retain(|_, window| window.newest_ms >= horizon_ms);
        if self.sessions.len() < self.max_sessions {
            return;
        }
        let quietest = self.sessions.iter().min_by_key(|(_, window)| window.newest_ms);
        if let Some((&session, window)) = quietest {
            self.floor_ms = self.floor_ms.max(window.newest_ms);
            self.sessions.remove(&session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64) -> SessionId {
        SessionId(number.to_be_bytes())
    }

    /// Marks a fresh datagram, as the opener does; returns whether it was fresh.
    fn offer(guard: &mut ReplayGuard, number: u64, counter: u32, sent_ms: u64) -> bool {
        let fresh = guard.is_fresh(session(number), counter, sent_ms);
        if fresh {
            guard.mark(session(number), counter, sent_ms, 0);
        }
        fresh
    }

    #[test]
    fn replay_window_accepts_each_counter_once_in_any_order() {
        let mut guard = ReplayGuard::default();
        let order = [5, 1, 3, 2, 4, 900, 899, 2_500, 2_499, 1_000];
        for counter in order {
            assert!(offer(&mut guard, 1, counter, 10), "{counter}");
        }
        for counter in order {
            assert!(!offer(&mut guard, 1, counter, 10), "{counter} again");
        }
    }

    #[test]
    fn replay_window_refuses_counters_below_it() {
        let mut guard = ReplayGuard::default();
        assert!(offer(&mut guard, 1, 10 + WINDOW, 10));
        assert!(!offer(&mut guard, 1, 10, 10), "just outside");
        assert!(offer(&mut guard, 1, 11, 10), "just inside");
        assert!(offer(&mut guard, 1, u32::MAX, 10));
        assert!(!offer(&mut guard, 1, 11, 10));
    }

    /// Compares the window with the simplest model: a set of all counters seen.
    #[test]
    fn replay_window_equals_a_set() {
        let mut guard = ReplayGuard::default();
        let mut seen = std::collections::HashSet::new();
        let mut state = 0x9e37_79b9_u32;
        let mut highest = 0;
        for step in 0..20_000_u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let counter = (step / 2).saturating_sub(600) + (state >> 16) % 1_200 + 1;
            let expected = counter + WINDOW > highest && !seen.contains(&counter);
            assert_eq!(offer(&mut guard, 1, counter, 1), expected, "step {step}, counter {counter}");
            seen.insert(counter);
            highest = highest.max(counter);
        }
    }

    #[test]
    fn session_that_was_evicted_cannot_be_replayed() {
        let mut guard = ReplayGuard::with_capacity(3);
        for number in 1..=4 {
            assert!(offer(&mut guard, number, 1, 100 + number));
        }
        assert_eq!(guard.sessions.len(), 3, "memory is bounded");
        assert!(!offer(&mut guard, 1, 1, 101), "the first session's datagram, after the table forgot it");
        assert!(offer(&mut guard, 5, 1, 102), "a new session of later time");
    }

    #[test]
    fn sessions_past_the_horizon_are_evicted_first() {
        let mut guard = ReplayGuard::with_capacity(2);
        assert!(offer(&mut guard, 1, 1, 100));
        assert!(offer(&mut guard, 2, 1, 900));
        guard.mark(session(3), 1, 950, 500);
        assert_eq!(guard.floor_ms, 0, "nothing that could still be replayed was forgotten");
        assert!(!guard.sessions.contains_key(&session(1)));
    }
}
