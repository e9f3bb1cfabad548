//! How many entries each table holds at the most, checked while planning.

use datapath_abi::{
    MAX_BACKENDS, MAX_ENDPOINTS, MAX_FRONTENDS, MAX_IPCACHE, MAX_IPCACHE_LPM, MAX_NODES, MAX_SERVICES,
};
use serde::{Deserialize, Serialize};

use crate::{TableKey, Tables, epochs::is_exact};

/// A table that cannot hold what is wanted. Its entries that have room are made all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PlanError {
    /// Too many entries.
    #[error("table {table} is full: {wanted} entries wanted, {max} at the most")]
    Capacity {
        /// The table; of the ipcache the part.
        table: String,
        /// How many are wanted.
        wanted: usize,
        /// How many there can be.
        max: usize,
    },
}

/// A kernel table that has a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    Nodes,
    IpcacheExact,
    IpcachePrefix,
    Endpoints,
    Backends,
    Services,
    Frontends,
}

/// Limits, in entries. Real ones by default; tests make them small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Nodes, this one included; index 0 is no node's.
    pub nodes: usize,
    /// Exact addresses.
    pub ipcache_exact: usize,
    /// Prefixes.
    pub ipcache_prefix: usize,
    /// Local endpoints.
    pub endpoints: usize,
    /// Members of service ports; number 0 is none's.
    pub backends: usize,
    /// Service ports; number 0 is none's.
    pub services: usize,
    /// Addresses and ports of services.
    pub frontends: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: MAX_NODES as usize - 1,
            ipcache_exact: MAX_IPCACHE as usize,
            ipcache_prefix: MAX_IPCACHE_LPM as usize,
            endpoints: MAX_ENDPOINTS as usize,
            backends: MAX_BACKENDS as usize - 1,
            services: MAX_SERVICES as usize - 1,
            frontends: MAX_FRONTENDS as usize,
        }
    }
}

impl Room {
    pub(crate) const ALL: [Self; 7] = [
        Self::Nodes,
        Self::IpcacheExact,
        Self::IpcachePrefix,
        Self::Endpoints,
        Self::Backends,
        Self::Services,
        Self::Frontends,
    ];

    /// Where an entry takes room; routes and the base have no limit of ours.
    pub(crate) fn of(key: &TableKey) -> Option<Self> {
        match key {
            TableKey::Base | TableKey::Route(_) => None,
            TableKey::Node(_) => Some(Self::Nodes),
            TableKey::Ipcache(prefix) if is_exact(prefix) => Some(Self::IpcacheExact),
            TableKey::Ipcache(_) => Some(Self::IpcachePrefix),
            TableKey::Endpoint(_) => Some(Self::Endpoints),
            TableKey::Backend(_) => Some(Self::Backends),
            TableKey::Service(_) => Some(Self::Services),
            TableKey::Frontend(_) => Some(Self::Frontends),
        }
    }

    pub(crate) fn max(self, limits: &Limits) -> usize {
        match self {
            Self::Nodes => limits.nodes,
            Self::IpcacheExact => limits.ipcache_exact,
            Self::IpcachePrefix => limits.ipcache_prefix,
            Self::Endpoints => limits.endpoints,
            Self::Backends => limits.backends,
            Self::Services => limits.services,
            Self::Frontends => limits.frontends,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::IpcacheExact => "ipcache (addresses)",
            Self::IpcachePrefix => "ipcache (prefixes)",
            Self::Endpoints => "endpoints",
            Self::Backends => "backends",
            Self::Services => "services",
            Self::Frontends => "frontends",
        }
    }
}

/// Tables whose number of entries by [`Room`] is always known.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    tables: Tables,
    exact: usize,
}

impl Counted {
    pub(crate) fn new(tables: Tables) -> Self {
        let exact = tables.ipcache.keys().filter(|prefix| is_exact(prefix)).count();
        Self { tables, exact }
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Changes one entry by `change`, and keeps the count.
    pub(crate) fn change(&mut self, key: &TableKey, change: impl FnOnce(&mut Tables)) {
        let before = self.tables.ipcache.len();
        change(&mut self.tables);
        if Room::of(key) == Some(Room::IpcacheExact) {
            self.exact = self.exact + self.tables.ipcache.len() - before;
        }
    }

    pub(crate) fn used(&self, room: Room) -> usize {
        match room {
            Room::Nodes => self.tables.nodes.len(),
            Room::IpcacheExact => self.exact,
            Room::IpcachePrefix => self.tables.ipcache.len() - self.exact,
            Room::Endpoints => self.tables.endpoints.len(),
            Room::Backends => self.tables.backends.len(),
            Room::Services => self.tables.services.len(),
            Room::Frontends => self.tables.frontends.len(),
        }
    }
}
