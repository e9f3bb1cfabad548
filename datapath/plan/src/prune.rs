//! The sources of rows that are complete, so that rows that nobody wants may be removed.

use serde::{Deserialize, Serialize};

/// For which tables everything that belongs there is known, so that the rest of what the kernel holds may be removed
/// (P6). A removal by name does not need it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prune {
    /// All nodes are known.
    pub nodes: bool,
    /// All addresses are known.
    pub ipcache: bool,
    /// All pod CIDRs are known.
    pub routes: bool,
    /// All local endpoints are known.
    pub endpoints: bool,
    /// All services and their backends are known.
    pub services: bool,
}

impl Prune {
    /// No source is complete: silence removes nothing.
    pub const NONE: Self =
        Self { nodes: false, ipcache: false, routes: false, endpoints: false, services: false };
    /// Every source is complete.
    pub const ALL: Self = Self { nodes: true, ipcache: true, routes: true, endpoints: true, services: true };
}
