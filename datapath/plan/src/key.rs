//! Names of single entries over all tables, in the order in which they are made.

use std::fmt;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{BackendId, EndpointId, Frontend, NodeIndex, Op, ServiceId};

/// One entry of [`crate::Tables`]. The order is that of a plan: an entry stands only on smaller ones, so
/// puts go upwards and removals downwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TableKey {
    /// The base; there is one.
    Base,
    /// A node.
    Node(NodeIndex),
    /// An ipcache entry.
    Ipcache(IpNetwork),
    /// A route.
    Route(IpNetwork),
    /// A local endpoint.
    Endpoint(EndpointId),
    /// A member of a service port.
    Backend(BackendId),
    /// A service port.
    Service(ServiceId),
    /// Where a service port is reached.
    Frontend(Frontend),
}

impl TableKey {
    /// The table's name, in metrics and on the command line.
    pub const fn table(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Node(_) => "nodes",
            Self::Ipcache(_) => "ipcache",
            Self::Route(_) => "routes",
            Self::Endpoint(_) => "endpoints",
            Self::Backend(_) => "backends",
            Self::Service(_) => "services",
            Self::Frontend(_) => "frontends",
        }
    }

    /// The entry that a step makes or removes; `None` for one that concerns flows.
    pub const fn of(op: &Op) -> Option<Self> {
        match op {
            Op::PutBase(_) => Some(Self::Base),
            Op::PutNode(index, _) | Op::DeleteNode(index) => Some(Self::Node(*index)),
            Op::PutIpcache(prefix, _) | Op::DeleteIpcache(prefix) => Some(Self::Ipcache(*prefix)),
            Op::PutRoute(prefix, _) | Op::DeleteRoute(prefix) => Some(Self::Route(*prefix)),
            Op::PutEndpoint(id, _) | Op::DeleteEndpoint(id) => Some(Self::Endpoint(*id)),
            Op::PutBackend(id, _) | Op::DeleteBackend(id) => Some(Self::Backend(*id)),
            Op::PutService(id, _) | Op::DeleteService(id) => Some(Self::Service(*id)),
            Op::PutFrontend(frontend, _) | Op::DeleteFrontend(frontend) => Some(Self::Frontend(*frontend)),
            Op::BumpEpochs(_) => None,
        }
    }
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Node(index) => write!(f, "nodes {}", index.0),
            Self::Ipcache(prefix) => write!(f, "ipcache {prefix}"),
            Self::Route(prefix) => write!(f, "routes {prefix}"),
            Self::Endpoint(id) => write!(f, "endpoints {id}"),
            Self::Backend(id) => write!(f, "backends {}", id.0),
            Self::Service(id) => write!(f, "services {}", id.0),
            Self::Frontend(frontend) => write!(f, "frontends {frontend}"),
        }
    }
}

/// Of which tables everything that belongs there is known, so that the rest of what the kernel holds may be
/// removed (P6). Whatever is removed by name does not need it.
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
    /// Nothing is complete: remove nothing on the word of silence.
    pub const NONE: Self =
        Self { nodes: false, ipcache: false, routes: false, endpoints: false, services: false };
    /// Everything is complete.
    pub const ALL: Self = Self { nodes: true, ipcache: true, routes: true, endpoints: true, services: true };

    /// Whether an entry that nobody wants may go.
    pub const fn allows(&self, key: &TableKey) -> bool {
        match key {
            TableKey::Base => false,
            TableKey::Node(_) => self.nodes,
            TableKey::Ipcache(_) => self.ipcache,
            TableKey::Route(_) => self.routes,
            TableKey::Endpoint(_) => self.endpoints,
            TableKey::Backend(_) | TableKey::Service(_) | TableKey::Frontend(_) => self.services,
        }
    }
}
