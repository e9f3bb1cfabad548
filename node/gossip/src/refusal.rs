//! Why datagrams are dropped: one name for wire, counters, metrics and status.

use std::fmt;

/// Why a datagram was dropped. Nothing of it was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Shorter than header and tag.
    TooShort,
    /// Longer than a UDP datagram can be.
    Oversized,
    /// Another protocol, or another version of it.
    NotOurs,
    /// Of another fleet.
    WrongFleet,
    /// Sealed with a key that is not installed.
    UnknownKey,
    /// Sent too long ago or too far in the future: outside the tolerated clock skew.
    Stale,
    /// Seen before, sealed by ourselves, or so old that it may have been seen.
    Replay,
    /// Forged or damaged: the tag does not match.
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
