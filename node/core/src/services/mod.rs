//! Services: what people want of them, and what that is in this node's kernel.
//!
//! A record becomes service ports, each with its frontends and its members; an endpoint that comes or goes touches only
//! the services that select its identity. What was touched is looked at once, however often.

mod call;
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
use crate::node::Node;
pub(crate) use call::{Write, Writing};

/// All services. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Services {
    services: BTreeMap<ServiceName, Service>,
    index: Index,
    numbers: Numbers,
    writing: Writing,
    /// Records to be looked at again.
    pub touched: BTreeSet<ServiceName>,
    /// Ports whose members have changed.
    changed: BTreeSet<(ServiceName, PortKey)>,
    /// Ports of which no backend is well, so that all are used.
    desperate: BTreeSet<(ServiceName, PortKey)>,
    /// Backends that are members of nothing any more, but still in the kernel's table.
    left: BTreeSet<BackendId>,
    /// The routes that each service needs, and how many need each.
    routes_of: BTreeMap<ServiceName, BTreeSet<IpNetwork>>,
    routes: BTreeMap<IpNetwork, usize>,
    /// Services of which some port or backend got no number.
    crowded: BTreeSet<ServiceName>,
    /// The zones of nodes.
    zones: BTreeMap<NodeName, String>,
    /// Services with fixed backends, for which it matters where these are.
    placed: BTreeSet<ServiceName>,
}

/// What tells the service ports of a service apart.
type PortKey = (ServiceProtocol, u16, Scope);

/// Which of its backends a service port has. The clients of one frontend all get the same, so where they differ there are
/// two service ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Scope {
    /// All of the fleet.
    Fleet,
    /// Those of this node.
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
    /// The backends' port, where they do not say another.
    target: u16,
    members: BTreeMap<(Ipv4Addr, u16), Member>,
}

/// One of its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    id: BackendId,
    weight: u16,
    /// What it may get, by its own.
    state: BackendState,
    /// The kernel had it at the start, and nobody has told of it since: it stays until all have been heard.
    doubtful: bool,
}

/// The weight of a backend that is found by its labels.
const EQUAL_WEIGHT: u16 = 1;

impl Services {
    /// Whether some endpoint has an identity.
    pub(crate) fn knows(&self, identity: Identity) -> bool {
        self.index.knows(identity)
    }
}

impl Node {
    /// What the kernel had at the start keeps its numbers.
    pub(crate) fn adopt_services(&mut self, tables: &Tables) {
        self.services.numbers.adopt(tables);
    }

    /// An address is an endpoint's from now on, or no more.
    pub(crate) fn follow_endpoint(
        &mut self,
        address: IpAddr,
        identity: Option<Identity>,
        labels: impl FnOnce() -> Labels,
    ) {
        let Some(address) = v4(address) else { return };
        let (lost, won) = self.services.index.follow(address, identity, labels);
        let here = self.is_here(address.into());
        for name in lost {
            for (key, target) in self.targets(&name) {
                self.remove_member(&name, key, (address, target));
            }
            self.touch_host_ports(&name, here);
        }
        for name in won {
            for (key, target) in self.targets(&name) {
                if key.2 == Scope::Fleet || here {
                    self.add_member(&name, key, (address, target), EQUAL_WEIGHT);
                }
            }
            self.touch_host_ports(&name, here);
        }
    }

    /// Host ports are there while this node has backends.
    fn touch_host_ports(&mut self, name: &ServiceName, here: bool) {
        let service = self.services.services.get(name).filter(|_| here);
        if service.is_some_and(|it| it.record.spec.ports.iter().any(|port| port.host_port.is_some())) {
            self.services.touched.insert(name.clone());
        }
    }

    /// A number means these labels from now on: what was known of its endpoints under others is forgotten. Returns their
    /// addresses, to be looked at again.
    pub(crate) fn endpoints_that_meant_other_labels(
        &mut self,
        identity: Identity,
        labels: &Labels,
    ) -> Vec<IpAddr> {
        let addresses = self.services.index.addresses_under_other_labels(identity, labels);
        for address in &addresses {
            self.follow_endpoint(*address, None, Labels::default);
        }
        addresses
    }

    /// The ports of a service with the ports of its backends.
    fn targets(&self, name: &ServiceName) -> Vec<(PortKey, u16)> {
        let ports = self.services.services.get(name).into_iter().flat_map(|service| &service.ports);
        ports.map(|(key, port)| (*key, port.target)).collect()
    }

    /// Brings everything touched up to date. O(touched · members).
    pub(crate) fn refresh_services(&mut self) {
        while let Some(name) = self.services.touched.pop_first() {
            self.refresh_service(&name);
        }
        self.refresh_health();
        for (name, key) in std::mem::take(&mut self.services.changed) {
            let Some(service) = self.services.services.get(&name) else { continue };
            let Some(port) = service.ports.get(&key) else { continue };
            let desperate = port.is_desperate();
            let value = self.service_value(service, key, port, desperate);
            self.reconciler.set(port.id, Some(value));
            let before = match desperate {
                true => !self.services.desperate.insert((name.clone(), key)),
                false => self.services.desperate.remove(&(name.clone(), key)),
            };
            if before != desperate || desperate {
                for (at, member) in &port.members {
                    let value = backend_value(port.id, *at, member, desperate);
                    self.reconciler.set(member.id, Some(value));
                }
            }
        }
        let left = std::mem::take(&mut self.services.left);
        if left.is_empty() {
            return;
        }
        for id in left {
            self.reconciler.set::<BackendValue>(id, None);
        }
        // Numbers are free again, once the kernel has let go of them.
        let crowded = std::mem::take(&mut self.services.crowded);
        self.services.touched.extend(crowded);
    }
}

fn protocol(protocol: ServiceProtocol) -> Protocol {
    match protocol {
        ServiceProtocol::Tcp => Protocol::Tcp,
        ServiceProtocol::Udp => Protocol::Udp,
        ServiceProtocol::Sctp => Protocol::Sctp,
    }
}

/// The programs have no table for IPv6.
fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
