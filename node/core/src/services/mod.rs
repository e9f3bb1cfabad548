//! Services: from their records to backends, service ports and frontends in this node's kernel.
//!
//! A record becomes service ports, each with its frontends and its members; an endpoint that comes or goes concerns only
//! the services that select its identity. Each service and port that changed is computed once per event.

pub(crate) mod call;
mod index;
mod member;
mod number;
mod place;
mod port;
mod route;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use datapath_plan::{
    BackendId, BackendState, BackendValue, Frontend, FrontendKind, Protocol, ServiceId, Tables,
};
use identity::{Identity, Labels, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::service::{ServiceProtocol, ServiceRecord};
use serde::{Deserialize, Serialize};

use self::{index::Index, member::backend_value, number::Numbers};
use crate::{
    context::Context,
    ipcache::{Sources, v4},
};
use call::Writing;

/// All services. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Services {
    services: BTreeMap<ServiceName, Service>,
    index: Index,
    numbers: Numbers,
    writing: Writing,
    /// Ports whose members have changed.
    changed: BTreeSet<(ServiceName, PortKey)>,
    /// Ports of which no backend is healthy, so that all are used.
    all_unhealthy: BTreeSet<(ServiceName, PortKey)>,
    /// Backends that are not members of any port any more, but still in the kernel's table.
    left: BTreeSet<BackendId>,
    /// The routes that each service needs, and how many services need each route.
    routes_of: BTreeMap<ServiceName, BTreeSet<IpNetwork>>,
    routes: BTreeMap<IpNetwork, usize>,
    /// Services of which a port or backend got no number.
    crowded: BTreeSet<ServiceName>,
    /// The zones of nodes.
    zones: BTreeMap<NodeName, String>,
    /// Services with fixed backends whose place matters.
    placed: BTreeSet<ServiceName>,
}

/// What distinguishes the service ports of a service.
type PortKey = (ServiceProtocol, u16, Scope);

/// Which of its backends a service port has. All clients of a frontend get the same backends, so where they differ there
/// are two service ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Scope {
    /// All backends of the fleet.
    Fleet,
    /// The backends of this node.
    Local,
}

/// A service as it is wanted in the kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Service {
    record: Arc<ServiceRecord>,
    ports: BTreeMap<PortKey, Port>,
}

/// One of its service ports.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Port {
    id: ServiceId,
    /// Never empty.
    frontends: BTreeMap<Frontend, FrontendKind>,
    /// The backends' port, unless a backend has its own.
    target: u16,
    members: BTreeMap<(Ipv4Addr, u16), Member>,
}

/// One of its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    id: BackendId,
    weight: u16,
    /// Its own state; if all members of the port are unhealthy, the kernel is told otherwise.
    state: BackendState,
    /// The kernel had it at the start and no source has told of it since: it stays until all sources have been heard.
    unconfirmed: bool,
}

/// The weight of a backend that is selected by labels.
const EQUAL_WEIGHT: u16 = 1;

impl Services {
    /// Whether some endpoint has an identity.
    pub(crate) fn knows(&self, identity: Identity) -> bool {
        self.index.knows(identity)
    }

    /// Keeps the numbers that the kernel has.
    pub(crate) fn adopt(&mut self, tables: &Tables) {
        self.numbers.adopt(tables);
    }

    /// The fleet's record, and with it the service pools, may have changed: all services compute their routes again.
    pub(crate) fn touch_all(&self, cx: &mut Context) {
        cx.changes.services.extend(self.services.keys().cloned());
    }

    /// An address is an endpoint's with this identity from now on, or not an endpoint's any more. `labels`: of the
    /// identity, asked for only if it is new here.
    pub(crate) fn follow_endpoint(
        &mut self,
        cx: &mut Context,
        sources: Sources<'_>,
        address: IpAddr,
        identity: Option<Identity>,
        labels: impl FnOnce() -> Labels,
    ) {
        let Some(address) = v4(address) else { return };
        let (lost, won) = self.index.follow(address, identity, labels);
        let here = place::is_here(sources, address.into());
        for name in lost {
            for (key, target) in self.targets(&name) {
                self.remove_member(cx, &name, key, (address, target));
            }
            self.touch_host_ports(cx, &name, here);
        }
        for name in won {
            for (key, target) in self.targets(&name) {
                if key.2 == Scope::Fleet || here {
                    self.add_member(cx, &name, key, (address, target), EQUAL_WEIGHT);
                }
            }
            self.touch_host_ports(cx, &name, here);
        }
    }

    /// A host port exists while this node has backends.
    fn touch_host_ports(&self, cx: &mut Context, name: &ServiceName, here: bool) {
        let service = self.services.get(name).filter(|_| here);
        if service.is_some_and(|it| it.record.spec.ports.iter().any(|port| port.host_port.is_some())) {
            cx.changes.services.insert(name.clone());
        }
    }

    /// An identity stands for these labels from now on: its endpoints are forgotten if it was known with other labels,
    /// and their addresses are looked at again.
    pub(crate) fn forget_other_labels(
        &mut self,
        cx: &mut Context,
        sources: Sources<'_>,
        identity: Identity,
        labels: &Labels,
    ) {
        for address in self.index.addresses_under_other_labels(identity, labels) {
            self.follow_endpoint(cx, sources, address, None, Labels::default);
            cx.changes.addresses.insert(address);
        }
    }

    /// The ports of a service with the ports of its backends.
    fn targets(&self, name: &ServiceName) -> Vec<(PortKey, u16)> {
        let ports = self.services.get(name).into_iter().flat_map(|service| &service.ports);
        ports.map(|(key, port)| (*key, port.target)).collect()
    }

    /// Computes the services that changed. O(changed · members).
    pub(crate) fn refresh(&mut self, cx: &mut Context, sources: Sources<'_>) {
        while let Some(name) = cx.changes.services.pop_first() {
            self.refresh_service(cx, sources, &name);
        }
    }

    /// Computes the ports whose members changed, after the states of their members.
    pub(crate) fn refresh_ports(&mut self, cx: &mut Context, sources: Sources<'_>) {
        for (name, key) in std::mem::take(&mut self.changed) {
            let Some(service) = self.services.get(&name) else { continue };
            let Some(port) = service.ports.get(&key) else { continue };
            let all_unhealthy = port.is_all_unhealthy();
            let value = self.service_value(cx, sources, service, key, port, all_unhealthy);
            cx.kernel.set(port.id, Some(value));
            let before = match all_unhealthy {
                true => !self.all_unhealthy.insert((name.clone(), key)),
                false => self.all_unhealthy.remove(&(name.clone(), key)),
            };
            if before != all_unhealthy || all_unhealthy {
                for (at, member) in &port.members {
                    let value = backend_value(port.id, *at, member, all_unhealthy);
                    cx.kernel.set(member.id, Some(value));
                }
            }
        }
        if self.left.is_empty() {
            return;
        }
        for id in std::mem::take(&mut self.left) {
            cx.kernel.set::<BackendValue>(id, None);
        }
        // Numbers become free, once the kernel does not use them any more.
        cx.changes.services.append(&mut self.crowded);
    }
}

fn protocol(protocol: ServiceProtocol) -> Protocol {
    match protocol {
        ServiceProtocol::Tcp => Protocol::Tcp,
        ServiceProtocol::Udp => Protocol::Udp,
        ServiceProtocol::Sctp => Protocol::Sctp,
    }
}
