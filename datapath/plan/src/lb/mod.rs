//! The slot tables of services: a flow's hash names a slot, the slot names a backend.
//!
//! Invariant: a table follows from its members' addresses, ports and weights alone: not from their numbers, their
//! order or the past. So all nodes choose alike, without a word between them.

mod maglev;
mod shares;

use std::net::IpAddr;

use crate::{Algorithm, BackendId, BackendValue};

/// A backend that takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its number, which the slots hold.
    pub id: BackendId,
    /// Where it is.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its part of the flows; 0: none.
    pub weight: u16,
}

impl Member {
    /// A member of a service port.
    pub const fn new(id: BackendId, value: &BackendValue) -> Self {
        Self { id, address: value.address, port: value.port, weight: value.weight }
    }
}

/// Slots of a table at the most.
pub const MAX_SLOTS: usize = maglev::LARGEST;

/// The table of these members; empty if nobody may have a flow. With more members than slots some have none.
pub fn slots(algorithm: Algorithm, members: &[Member]) -> Vec<BackendId> {
    let mut members: Vec<Member> = members.iter().filter(|member| member.weight > 0).copied().collect();
    // The order decides whose turn it is: it must be the same on all nodes.
    members.sort_unstable_by_key(|member| (member.address, member.port, member.id));
    match algorithm {
        Algorithm::Random => shares::slots(&members),
        Algorithm::Maglev => maglev::slots(&members),
    }
}
