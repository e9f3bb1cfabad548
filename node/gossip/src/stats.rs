//! Counters of the transport and of its watchdog: what `warren status` and `/metrics` show.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::Refusal;

/// The counters at one moment. All rise from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GossipStats {
    /// Datagrams received, of any kind.
    pub datagrams_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Datagrams that the kernel refused to send: no route, device down, filtered.
    pub send_failed: u64,
    /// Messages opened and passed to chitchat. No other byte reaches it.
    pub opened: u64,
    /// Datagrams dropped, by reason; every reason is listed.
    pub refused: Vec<(Refusal, u64)>,
    /// Opened messages that chitchat could not parse: a member has another version.
    pub unparsed: u64,
    /// Restarts of the chitchat task.
    pub restarts: u64,
    /// Events that replaced an unread older one of the same node and kind.
    pub events_coalesced: u64,
}

impl GossipStats {
    /// The number of datagrams dropped for a reason.
    pub fn refused_for(&self, reason: Refusal) -> u64 {
        self.refused.iter().find(|(other, _)| *other == reason).map_or(0, |(_, count)| *count)
    }
}

/// The live counters. Shared by transport and supervisor; each is a plain sum, so relaxed order suffices.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub datagrams_in: AtomicU64,
    pub bytes_in: AtomicU64,
    pub datagrams_out: AtomicU64,
    pub bytes_out: AtomicU64,
    pub send_failed: AtomicU64,
    pub opened: AtomicU64,
    pub refused: [AtomicU64; Refusal::ALL.len()],
    pub unparsed: AtomicU64,
    pub restarts: AtomicU64,
    pub events_coalesced: AtomicU64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Adds a number of bytes.
pub(crate) fn count_bytes(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Relaxed);
}

impl Counters {
    pub fn refuse(&self, reason: Refusal) {
        count(&self.refused[reason as usize]);
    }

    pub fn snapshot(&self) -> GossipStats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        GossipStats {
            datagrams_in: get(&self.datagrams_in),
            bytes_in: get(&self.bytes_in),
            datagrams_out: get(&self.datagrams_out),
            bytes_out: get(&self.bytes_out),
            send_failed: get(&self.send_failed),
            opened: get(&self.opened),
            refused: Refusal::ALL.map(|reason| (reason, get(&self.refused[reason as usize]))).to_vec(),
            unparsed: get(&self.unparsed),
            restarts: get(&self.restarts),
            events_coalesced: get(&self.events_coalesced),
        }
    }
}
