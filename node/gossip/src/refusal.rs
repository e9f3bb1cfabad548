//! Why datagrams are dropped: one word for wire, counters, metrics and status.

use std::fmt;

/// Why a datagram was dropped. Nothing of it was handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Shorter than header and tag.
    TooShort,
    /// Longer than a UDP datagram can be.
    Oversized,
    /// Not of this protocol, or of another version of it.
    NotOurs,
    /// Another fleet's.
    WrongFleet,
    /// Sealed with a key that is not installed.
    UnknownKey,
    /// Sent longer ago, or further in the future, than clocks may differ.
    Stale,
    /// Seen before, sealed by ourselves, or so old that it may have been.
    Replay,
    /// Forged or damaged: the tag does not fit.
    BadTag,
    /// The second half of a message whose first half did not arrive.
    LostHalf,
}

impl Refusal {
    /// All reasons, in the order of the checks.
    pub const ALL: [Self; 9] = [
        Self::TooShort,
        Self::Oversized,
        Self::NotOurs,
        Self::WrongFleet,
        Self::UnknownKey,
        Self::Stale,
        Self::Replay,
        Self::BadTag,
        Self::LostHalf,
    ];

    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too-short",
            Self::Oversized => "oversized",
            Self::NotOurs => "not-ours",
            Self::WrongFleet => "wrong-fleet",
            Self::UnknownKey => "unknown-key",
            Self::Stale => "stale",
            Self::Replay => "replay",
            Self::BadTag => "bad-tag",
            Self::LostHalf => "lost-half",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
