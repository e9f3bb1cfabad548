//! Backends of service ports.

use std::{fmt, net::IpAddr};

use datapath_abi::MAX_BACKENDS;
use serde::{Deserialize, Serialize};

use crate::{
    Prune, ServiceId,
    epochs::Epochs,
    row::{Change, Room, Row},
};

/// The number of one member of one service port on this node. An endpoint that is a member of two ports is two backends.
/// Never 0. Flows name backends by number, so a number is not reused before its entry is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u32);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl BackendId {
    /// The highest.
    pub const LAST: Self = Self(MAX_BACKENDS - 1);
}

/// The flows that a backend may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// New flows and known flows.
    Active,
    /// Known flows only: the backend is being removed.
    Terminating,
    /// Known flows only, until the backend is healthy again.
    Unhealthy,
}

impl BackendState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Terminating, Self::Unhealthy];

    /// The word, as on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Terminating => "terminating",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A backend in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendValue {
    /// The service port that the backend is a member of.
    pub service: ServiceId,
    /// The backend's address.
    pub address: IpAddr,
    /// The backend's port.
    pub port: u16,
    /// The share of new flows, relative to the other members' weights; 0: none.
    pub weight: u16,
    /// The flows that the backend may have.
    pub state: BackendState,
}

impl BackendValue {
    /// Whether flows to one are flows to the other.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        (self.service, self.address, self.port) == (other.service, other.address, other.port)
    }

    /// Whether both have the same slots.
    pub(crate) fn same_share(&self, other: &Self) -> bool {
        self.same_place(other) && self.weight == other.weight
    }
}

impl Row for BackendValue {
    const NAME: &'static str = "backends";
    /// Number 0 is no backend's.
    const ROOMS: &'static [Room] = &[Room { name: "backends", max: MAX_BACKENDS as usize - 1 }];

    fn may_be_pruned(prune: &Prune) -> bool {
        prune.services
    }

    /// Flows through a backend go on with it, unless it is gone or another place now.
    fn concerns(change: &Change<'_, Self>, epochs: &mut Epochs) {
        if let Some(had) = change.had
            && !change.wanted.is_some_and(|wanted| had.same_place(wanted))
        {
            epochs.address(had.address);
        }
    }
}

impl fmt::Display for BackendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, address, port, weight, state } = self;
        write!(f, "service {} address {address} port {port} weight {weight} {}", service.0, state.word())
    }
}
