//! Faults between one client and the in-memory store, switched on by tests.
//!
//! Everything here is scripted or seeded: the same test always meets the same faults.

use std::collections::VecDeque;

/// Whether a client reaches the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// The store answers.
    #[default]
    Up,
    /// Connections are refused: nothing is carried out, running watches end.
    Refused,
    /// Packets are lost: calls time out, running watches fall silent and are given up.
    BlackHole,
}

/// The fate of one write and its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WriteFate {
    /// Carried out and answered.
    #[default]
    Answered,
    /// Carried out; the answer is lost.
    AppliedUnanswered,
    /// Not carried out; the client cannot know.
    LostUnanswered,
}

/// The fates of a client's writes: first those of a script, then drawn from a seed, else all well.
#[derive(Debug, Clone, Default)]
pub struct WriteFates {
    script: VecDeque<WriteFate>,
    drawn: Option<Drawn>,
}

#[derive(Debug, Clone)]
struct Drawn {
    state: u64,
    ambiguous_percent: u8,
}

impl WriteFates {
    /// The next writes meet these fates, in order.
    pub fn scripted(fates: impl IntoIterator<Item = WriteFate>) -> Self {
        Self { script: fates.into_iter().collect(), drawn: None }
    }

    /// That many of a hundred writes stay unanswered, half of them carried out.
    pub fn seeded(seed: u64, ambiguous_percent: u8) -> Self {
        Self { script: VecDeque::new(), drawn: Some(Drawn { state: seed, ambiguous_percent }) }
    }

    /// The fate of the next write.
    pub fn draw(&mut self) -> WriteFate {
        if let Some(fate) = self.script.pop_front() {
            return fate;
        }
        let Some(drawn) = &mut self.drawn else {
            return WriteFate::Answered;
        };
        let random = splitmix64(&mut drawn.state);
        if random % 100 >= u64::from(drawn.ambiguous_percent) {
            WriteFate::Answered
        } else if random >> 63 == 0 {
            WriteFate::AppliedUnanswered
        } else {
            WriteFate::LostUnanswered
        }
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014). Here rather than a
/// crate, whose numbers may change between versions while recorded seeds must not.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
