//! One entry as a value: what lets the reconciler treat the tables alike.

use std::{collections::BTreeSet, fmt};

use crate::{
    BackendValue, Base, EndpointValue, EpochScope, FrontendValue, IpcacheValue, NextHop, NodeValue, Op,
    RouteValue, ServiceValue, TableKey, Tables,
};

/// The value of one [`TableKey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Of [`TableKey::Base`].
    Base(Base),
    /// Of [`TableKey::Node`].
    Node(NodeValue),
    /// Of [`TableKey::Ipcache`].
    Ipcache(IpcacheValue),
    /// Of [`TableKey::Route`].
    Route(RouteValue),
    /// Of [`TableKey::Endpoint`].
    Endpoint(EndpointValue),
    /// Of [`TableKey::Backend`].
    Backend(BackendValue),
    /// Of [`TableKey::Service`].
    Service(ServiceValue),
    /// Of [`TableKey::Frontend`].
    Frontend(FrontendValue),
}

impl Entry {
    /// Whether the kernel cannot tell the two apart: it does not remember how an endpoint is attached.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Endpoint(a), Self::Endpoint(b)) => {
                (a.address, a.identity, a.mac, a.host_mac) == (b.address, b.identity, b.mac, b.host_mac)
            }
            _ => self == other,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(base) => base.fmt(f),
            Self::Node(node) => write!(f, "underlay {}", node.underlay),
            Self::Ipcache(value) => write!(f, "identity {} node {}", value.identity, value.node.0),
            Self::Route(RouteValue { next_hop, source, mtu_bytes }) => {
                if let Some(NextHop { address, ifindex }) = next_hop {
                    write!(f, "via {address} at {ifindex} ")?;
                }
                write!(f, "source {source} mtu {mtu_bytes}")
            }
            Self::Endpoint(endpoint) => write!(
                f,
                "address {} identity {} mac {} host mac {}",
                endpoint.address, endpoint.identity, endpoint.mac, endpoint.host_mac
            ),
            Self::Backend(backend) => backend.fmt(f),
            Self::Service(service) => service.fmt(f),
            Self::Frontend(frontend) => frontend.fmt(f),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, entry) = match self {
            Self::PutBase(base) => ("put", Some(Entry::Base(base.clone()))),
            Self::PutNode(_, value) => ("put", Some(Entry::Node(*value))),
            Self::PutIpcache(_, value) => ("put", Some(Entry::Ipcache(*value))),
            Self::PutRoute(_, value) => ("put", Some(Entry::Route(*value))),
            Self::PutEndpoint(_, value) => ("put", Some(Entry::Endpoint(value.clone()))),
            Self::PutBackend(_, value) => ("put", Some(Entry::Backend(*value))),
            Self::PutService(_, value) => ("put", Some(Entry::Service(value.clone()))),
            Self::PutFrontend(_, value) => ("put", Some(Entry::Frontend(*value))),
            Self::DeleteNode(_)
            | Self::DeleteIpcache(_)
            | Self::DeleteRoute(_)
            | Self::DeleteEndpoint(_)
            | Self::DeleteBackend(_)
            | Self::DeleteService(_)
            | Self::DeleteFrontend(_) => ("delete", None),
            Self::BumpEpochs(EpochScope::All) => return f.write_str("bump all epochs"),
            Self::BumpEpochs(EpochScope::Addresses(addresses)) => {
                f.write_str("bump epochs of")?;
                return addresses.iter().try_for_each(|address| write!(f, " {address}"));
            }
        };
        match (TableKey::of(self), entry) {
            (Some(key), Some(entry)) => write!(f, "{verb} {key}: {entry}"),
            (Some(key), None) => write!(f, "{verb} {key}"),
            (None, _) => Ok(()),
        }
    }
}

impl Tables {
    /// The entry of a key.
    pub fn get(&self, key: &TableKey) -> Option<Entry> {
        match key {
            TableKey::Base => self.base.clone().map(Entry::Base),
            TableKey::Node(index) => self.nodes.get(index).copied().map(Entry::Node),
            TableKey::Ipcache(prefix) => self.ipcache.get(prefix).copied().map(Entry::Ipcache),
            TableKey::Route(prefix) => self.routes.get(prefix).copied().map(Entry::Route),
            TableKey::Endpoint(id) => self.endpoints.get(id).cloned().map(Entry::Endpoint),
            TableKey::Backend(id) => self.backends.get(id).copied().map(Entry::Backend),
            TableKey::Service(id) => self.services.get(id).cloned().map(Entry::Service),
            TableKey::Frontend(frontend) => self.frontends.get(frontend).copied().map(Entry::Frontend),
        }
    }

    /// All keys that have an entry.
    pub fn keys(&self) -> BTreeSet<TableKey> {
        (self.base.iter().map(|_| TableKey::Base))
            .chain(self.nodes.keys().copied().map(TableKey::Node))
            .chain(self.ipcache.keys().copied().map(TableKey::Ipcache))
            .chain(self.routes.keys().copied().map(TableKey::Route))
            .chain(self.endpoints.keys().copied().map(TableKey::Endpoint))
            .chain(self.backends.keys().copied().map(TableKey::Backend))
            .chain(self.services.keys().copied().map(TableKey::Service))
            .chain(self.frontends.keys().copied().map(TableKey::Frontend))
            .collect()
    }

    /// Removes the entry of a key, if there is one.
    pub fn remove(&mut self, key: &TableKey) {
        match key {
            TableKey::Base => self.base = None,
            TableKey::Node(index) => drop(self.nodes.remove(index)),
            TableKey::Ipcache(prefix) => drop(self.ipcache.remove(prefix)),
            TableKey::Route(prefix) => drop(self.routes.remove(prefix)),
            TableKey::Endpoint(id) => drop(self.endpoints.remove(id)),
            TableKey::Backend(id) => drop(self.backends.remove(id)),
            TableKey::Service(id) => drop(self.services.remove(id)),
            TableKey::Frontend(frontend) => drop(self.frontends.remove(frontend)),
        }
    }

    /// What a step makes of the tables; one that concerns flows changes nothing here.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::PutBase(base) => self.base = Some(base.clone()),
            Op::PutNode(index, value) => drop(self.nodes.insert(*index, *value)),
            Op::PutIpcache(prefix, value) => drop(self.ipcache.insert(*prefix, *value)),
            Op::PutRoute(prefix, value) => drop(self.routes.insert(*prefix, *value)),
            Op::PutEndpoint(id, value) => drop(self.endpoints.insert(*id, value.clone())),
            Op::PutBackend(id, value) => drop(self.backends.insert(*id, *value)),
            Op::PutService(id, value) => drop(self.services.insert(*id, value.clone())),
            Op::PutFrontend(frontend, value) => drop(self.frontends.insert(*frontend, *value)),
            Op::DeleteNode(_)
            | Op::DeleteIpcache(_)
            | Op::DeleteRoute(_)
            | Op::DeleteEndpoint(_)
            | Op::DeleteBackend(_)
            | Op::DeleteService(_)
            | Op::DeleteFrontend(_) => {
                if let Some(key) = TableKey::of(op) {
                    self.remove(&key);
                }
            }
            Op::BumpEpochs(_) => {}
        }
    }
}

/// The step that makes an entry.
pub(crate) fn put(key: TableKey, entry: Entry) -> Op {
    match (key, entry) {
        (TableKey::Base, Entry::Base(base)) => Op::PutBase(base),
        (TableKey::Node(index), Entry::Node(value)) => Op::PutNode(index, value),
        (TableKey::Ipcache(prefix), Entry::Ipcache(value)) => Op::PutIpcache(prefix, value),
        (TableKey::Route(prefix), Entry::Route(value)) => Op::PutRoute(prefix, value),
        (TableKey::Endpoint(id), Entry::Endpoint(value)) => Op::PutEndpoint(id, value),
        (TableKey::Backend(id), Entry::Backend(value)) => Op::PutBackend(id, value),
        (TableKey::Service(id), Entry::Service(value)) => Op::PutService(id, value),
        (TableKey::Frontend(frontend), Entry::Frontend(value)) => Op::PutFrontend(frontend, value),
        (key, entry) => unreachable!("{key} cannot hold {entry}: `Tables::get` pairs them"),
    }
}

/// The step that removes an entry; the base stays once it is there.
pub(crate) fn delete(key: TableKey) -> Option<Op> {
    match key {
        TableKey::Base => None,
        TableKey::Node(index) => Some(Op::DeleteNode(index)),
        TableKey::Ipcache(prefix) => Some(Op::DeleteIpcache(prefix)),
        TableKey::Route(prefix) => Some(Op::DeleteRoute(prefix)),
        TableKey::Endpoint(id) => Some(Op::DeleteEndpoint(id)),
        TableKey::Backend(id) => Some(Op::DeleteBackend(id)),
        TableKey::Service(id) => Some(Op::DeleteService(id)),
        TableKey::Frontend(frontend) => Some(Op::DeleteFrontend(frontend)),
    }
}
