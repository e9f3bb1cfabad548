//! Backends of service ports: what stands behind them.

use std::{fmt, net::IpAddr};

use datapath_abi::MAX_BACKENDS;
use serde::{Deserialize, Serialize};

use crate::{
    Prune, ServiceId,
    epochs::Epochs,
    row::{Change, Room, Row},
};

/// One member of one service port on this node; members of two are two backends, whatever their address. Never 0.
/// Flows name it: a number is not given to another address and port before its entry has gone.
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

/// What a backend may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// New flows.
    Active,
    /// No new flows, on the way out; those that run go on.
    Terminating,
    /// No new flows, until it is well again; those that run go on.
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
    /// The service port that it is a member of.
    pub service: ServiceId,
    /// Where it is.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its part of the flows, beside the other members' weights; 0: none.
    pub weight: u16,
    /// What it may get.
    pub state: BackendState,
}

impl BackendValue {
    /// Whether flows of the one are flows of the other.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        (self.service, self.address, self.port) == (other.service, other.address, other.port)
    }

    /// Whether the one gets what the other would get from a table.
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
