//! The slot tables of services: a flow's hash names a slot, the slot names a backend.
//!
//! Invariant: a table follows from the addresses, ports and weights of its members alone, and not from their numbers,
//! their order or the past. All nodes therefore choose alike, without a message between them.

mod maglev;
mod shares;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Algorithm, BackendId, BackendValue, ServiceValue};

/// A backend that takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The backend's number, which the slots hold.
    pub id: BackendId,
    /// The backend's address.
    pub address: IpAddr,
    /// The backend's port.
    pub port: u16,
    /// The backend's share of the flows, relative to the other members' weights; 0: none.
    pub weight: u16,
}

impl Member {
    /// A member of a service port.
    pub const fn new(id: BackendId, value: &BackendValue) -> Self {
        Self { id, address: value.address, port: value.port, weight: value.weight }
    }
}

/// The table of a service port, as its plan has chosen it: everything that the slots follow from.
///
/// A plan holds this instead of the slots, and the slots are computed when the table is written: 10,000 Maglev tables
/// are 40 MB and more of slots, and 2 MB of members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotTable {
    algorithm: Algorithm,
    members: Vec<Member>,
}

impl SlotTable {
    /// The table of those members of a service port that `backend` knows.
    pub fn new(service: &ServiceValue, backend: impl Fn(BackendId) -> Option<BackendValue>) -> Self {
        let member = |id: &BackendId| Some(Member::new(*id, &backend(*id)?));
        Self { algorithm: service.algorithm, members: service.members.iter().filter_map(member).collect() }
    }

    /// Its members, in ascending order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The table without a member that turns out not to be in the kernel, because its own step has failed.
    #[must_use]
    pub fn without(mut self, is_absent: impl Fn(BackendId) -> bool) -> Self {
        self.members.retain(|member| !is_absent(member.id));
        self
    }

    /// The first member of a service port that the table leaves out, because the kernel has no such backend.
    pub fn missing(&self, service: &ServiceValue) -> Option<BackendId> {
        let is_here = |id: &BackendId| self.members.binary_search_by_key(id, |member| member.id).is_ok();
        service.members.iter().copied().find(|id| !is_here(id))
    }

    /// Its slots.
    pub fn slots(&self) -> Vec<BackendId> {
        slots(self.algorithm, &self.members)
    }
}

/// The largest number of slots of a table.
pub const MAX_SLOTS: usize = maglev::LARGEST;

/// The slots of these members; empty if no member may have flows. With more members than slots, some members have none.
pub fn slots(algorithm: Algorithm, members: &[Member]) -> Vec<BackendId> {
    let mut members: Vec<Member> = members.iter().filter(|member| member.weight > 0).copied().collect();
    // The order decides which member takes the next slot: it must be the same on all nodes.
    members.sort_unstable_by_key(|member| (member.address, member.port, member.id));
    match algorithm {
        Algorithm::Random => shares::slots(&members),
        Algorithm::Maglev => maglev::slots(&members),
    }
}
