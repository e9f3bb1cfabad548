//! Identity numbers and their ranges. Numbers are given out by `kvstore-claims`, never here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number that stands for a set of labels, in etcd, in the kernel maps and on the wire.
///
/// 0 means "unknown" and is never given out; 1-255 are reserved; 256 to 2^24-1 belong to the fleet
/// (24 bits because the VXLAN VNI carries them); numbers with bit 24 set are CIDR identities, local
/// to one node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Identity(u32);

/// Why a number is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Above the highest CIDR identity (2^25-1).
    #[error("{0} is no identity: the highest is {max}", max = (1u32 << 25) - 1)]
    OutOfRange(u32),
}

impl Identity {
    /// Not known. Never means host, and is never given out.
    pub const UNKNOWN: Self = Self(0);
    /// The node that evaluates it.
    pub const HOST: Self = Self(1);
    /// Everything outside the fleet.
    pub const WORLD: Self = Self(2);
    /// An address inside a node's CIDR of which no endpoint is known.
    pub const UNMANAGED: Self = Self(3);
    /// Health checks between nodes.
    pub const HEALTH: Self = Self(4);
    /// An endpoint whose labels have no number yet.
    pub const INIT: Self = Self(5);
    /// Another node of the fleet.
    pub const REMOTE_NODE: Self = Self(6);
    /// The first number that the fleet gives out.
    pub const FLEET_MIN: Self = Self(256);
    /// The last number that the fleet gives out: the VNI has 24 bits.
    pub const FLEET_MAX: Self = Self((1 << 24) - 1);
    /// The bit that marks a node-local CIDR identity.
    pub const LOCAL_BIT: u32 = 1 << 24;

    /// Checks the range.
    ///
    /// # Errors
    /// [`IdentityError::OutOfRange`] above 2^25-1.
    pub const fn new(number: u32) -> Result<Self, IdentityError> {
        if number < Self::LOCAL_BIT << 1 { Ok(Self(number)) } else { Err(IdentityError::OutOfRange(number)) }
    }

    /// The bare number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Given out by the fleet through etcd.
    pub const fn is_fleet(self) -> bool {
        self.0 >= Self::FLEET_MIN.0 && self.0 <= Self::FLEET_MAX.0
    }

    /// One of 1-255.
    pub const fn is_reserved(self) -> bool {
        self.0 != 0 && self.0 < Self::FLEET_MIN.0
    }

    /// The name of a reserved number that has one.
    pub const fn reserved_name(self) -> Option<&'static str> {
        match self.0 {
            0 => Some("unknown"),
            1 => Some("host"),
            2 => Some("world"),
            3 => Some("unmanaged"),
            4 => Some("health"),
            5 => Some("init"),
            6 => Some("remote-node"),
            _ => None,
        }
    }
}

impl TryFrom<u32> for Identity {
    type Error = IdentityError;
    fn try_from(number: u32) -> Result<Self, Self::Error> {
        Self::new(number)
    }
}

impl From<Identity> for u32 {
    fn from(identity: Identity) -> Self {
        identity.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reserved_name() {
            Some(name) => write!(f, "{}({name})", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_ranges_end_at_their_bounds() {
        let check = |number: u32, fleet: bool, reserved: bool| {
            let identity = Identity::new(number).unwrap();
            assert_eq!((identity.is_fleet(), identity.is_reserved()), (fleet, reserved), "{number}");
        };
        check(0, false, false);
        check(1, false, true);
        check(255, false, true);
        check(256, true, false);
        check((1 << 24) - 1, true, false);
        check(1 << 24, false, false);
        check((1 << 25) - 1, false, false);
        assert_eq!(Identity::new(1 << 25), Err(IdentityError::OutOfRange(1 << 25)));
    }

    #[test]
    fn identity_shows_its_number_and_its_reserved_name() {
        assert_eq!(
            (Identity::WORLD.to_string(), format!("{:?}", Identity::WORLD)),
            ("2".into(), "2(world)".into())
        );
        assert_eq!(format!("{:?}", Identity::FLEET_MIN), "256");
    }
}
