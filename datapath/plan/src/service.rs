//! Service ports: their settings and their members.

use std::fmt;

use datapath_abi::MAX_SERVICES;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    BackendId, Prune,
    epochs::Epochs,
    row::{Change, Room, Row},
};

/// One port of a service on this node. Never 0; two nodes number the fleet's services differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId(pub u32);

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ServiceId {
    /// The highest.
    pub const LAST: Self = Self(MAX_SERVICES - 1);
}

/// The choice of a backend for a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// By the flow's hash. Another number of members moves most flows.
    Random,
    /// By the flow's hash. Another number of members moves few flows, and all nodes choose alike.
    Maglev,
}

impl Algorithm {
    /// The word, as in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
        }
    }
}

/// The source address that a backend sees of an external client that came by this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceMode {
    /// This node's address: replies come back here.
    Snat,
    /// The client's address: the backend's node replies to the client directly.
    Dsr,
}

impl ServiceMode {
    /// The word, as in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Snat => "snat",
            Self::Dsr => "dsr",
        }
    }
}

/// A service port in the kernel: its settings and its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceValue {
    /// The choice of a backend for a new flow.
    pub algorithm: Algorithm,
    /// The time that a silent client keeps its backend; 0: no affinity.
    pub affinity_seconds: u32,
    /// The source address that backends see of external clients.
    pub mode: ServiceMode,
    /// The networks that external clients may come from, in ascending order; empty: any.
    pub source_ranges: Vec<IpNetwork>,
    /// The backends that take new flows, without repetition, in ascending order. All of them are wanted in the table of
    /// backends, too.
    pub members: Vec<BackendId>,
}

impl Row for ServiceValue {
    const NAME: &'static str = "services";
    /// Number 0 is no service's.
    const ROOMS: &'static [Room] = &[Room { name: "services", max: MAX_SERVICES as usize - 1 }];

    fn may_be_pruned(prune: &Prune) -> bool {
        prune.services
    }

    /// Members and slots decide about new flows only. Source ranges decide about all flows, and their clients have any
    /// address: a client that may no longer come must not go on either.
    fn concerns(change: &Change<'_, Self>, epochs: &mut Epochs) {
        if let (Some(had), Some(wanted)) = (change.had, change.wanted)
            && had.source_ranges != wanted.source_ranges
            && !wanted.source_ranges.is_empty()
        {
            epochs.all();
        }
    }
}

impl fmt::Display for ServiceValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, affinity_seconds, mode, source_ranges, members } = self;
        write!(f, "{} {}", algorithm.word(), mode.word())?;
        if *affinity_seconds > 0 {
            write!(f, " affinity {affinity_seconds} s")?;
        }
        if !source_ranges.is_empty() {
            f.write_str(" sources")?;
            source_ranges.iter().try_for_each(|range| write!(f, " {range}"))?;
        }
        f.write_str(" members")?;
        members.iter().try_for_each(|member| write!(f, " {}", member.0))
    }
}
