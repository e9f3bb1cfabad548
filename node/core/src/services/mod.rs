//! Services: what people want of them, and what that is in this node's kernel.
//!
//! A record becomes service ports, each with its frontends and its members; an endpoint that comes or goes touches only
//! the services that select its identity. What was touched is looked at once, however often.

mod call;
mod index;
mod number;
mod route;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, Frontend, FrontendKind, FrontendValue, Protocol,
    ServiceId, ServiceMode, ServiceValue, Tables,
};
use identity::{Identity, Labels, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::service::{self as schema, ServiceProtocol, ServiceRecord};
use serde::{Deserialize, Serialize};

use self::{index::Index, number::Numbers};
use crate::node::Node;

/// All services. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Services {
    services: BTreeMap<ServiceName, Service>,
    index: Index,
    numbers: Numbers,
    /// Records to be looked at again.
    pub touched: BTreeSet<ServiceName>,
    /// Ports whose members have changed.
    changed: BTreeSet<(ServiceName, PortKey)>,
    /// Backends that are members of nothing any more, but still in the kernel's table.
    left: BTreeSet<BackendId>,
    /// The route that each service needs, and how many need each.
    route_of: BTreeMap<ServiceName, IpNetwork>,
    routes: BTreeMap<IpNetwork, usize>,
    /// Services of which some port or backend got no number.
    crowded: BTreeSet<ServiceName>,
}

/// What tells a service's ports apart.
type PortKey = (ServiceProtocol, u16);

/// A service as it is wanted in the kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Service {
    record: Arc<ServiceRecord>,
    ports: BTreeMap<PortKey, Port>,
}

/// One of its ports.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Port {
    id: ServiceId,
    frontend: Frontend,
    /// The backends' port, where they do not say another.
    target: u16,
    members: BTreeMap<(Ipv4Addr, u16), Member>,
}

/// One of its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    id: BackendId,
    weight: u16,
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
        for name in lost {
            for (key, target) in self.targets(&name) {
                self.remove_member(&name, key, (address, target));
            }
        }
        for name in won {
            for (key, target) in self.targets(&name) {
                self.add_member(&name, key, (address, target), EQUAL_WEIGHT);
            }
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
        for (name, key) in std::mem::take(&mut self.services.changed) {
            let Some(service) = self.services.services.get(&name) else { continue };
            let Some(port) = service.ports.get(&key) else { continue };
            let value = service_value(service, port);
            self.reconciler.set_service(port.id, Some(value));
        }
        let left = std::mem::take(&mut self.services.left);
        if left.is_empty() {
            return;
        }
        for id in left {
            self.reconciler.set_backend(id, None);
        }
        // Numbers are free again, once the kernel has let go of them.
        let crowded = std::mem::take(&mut self.services.crowded);
        self.services.touched.extend(crowded);
    }

    fn refresh_service(&mut self, name: &ServiceName) {
        let record = self.view.services().get(name).map(|entry| entry.record.clone());
        let selector = record.as_ref().and_then(|record| record.spec.selector.clone());
        self.services.index.select(name, selector);
        self.use_route(name, record.as_ref().map(|record| record.virtual_ip));
        let wanted: BTreeMap<PortKey, &schema::ServicePort> =
            record.iter().flat_map(|record| &record.spec.ports).map(|port| (key(port), port)).collect();
        for key in self.targets(name).into_iter().map(|(key, _)| key) {
            if !wanted.contains_key(&key) {
                self.remove_port(name, key);
            }
        }
        let Some(record) = &record else {
            self.services.services.remove(name);
            return;
        };
        match self.services.services.get_mut(name) {
            Some(service) => service.record = record.clone(),
            None => {
                let service = Service { record: record.clone(), ports: BTreeMap::new() };
                self.services.services.insert(name.clone(), service);
            }
        }
        for (key, port) in wanted {
            self.refresh_port(name, record, key, port);
        }
    }

    fn remove_port(&mut self, name: &ServiceName, key: PortKey) {
        let Some(service) = self.services.services.get_mut(name) else { return };
        let Some(port) = service.ports.remove(&key) else { return };
        self.reconciler.set_frontend(port.frontend, None);
        self.reconciler.set_service(port.id, None);
        self.services.left.extend(port.members.values().map(|member| member.id));
    }

    fn refresh_port(
        &mut self,
        name: &ServiceName,
        record: &ServiceRecord,
        key: PortKey,
        wanted: &schema::ServicePort,
    ) {
        let frontend =
            Frontend { address: record.virtual_ip, port: wanted.port, protocol: protocol(wanted.protocol) };
        let known = self.services.services.get(name).and_then(|service| service.ports.get(&key));
        let (id, before) = match known {
            Some(port) => (port.id, Some(port.frontend)),
            None => match self.number_service(frontend) {
                Some(id) => (id, None),
                None => return self.no_room(name, "service port"),
            },
        };
        if let Some(before) = before.filter(|before| *before != frontend) {
            self.reconciler.set_frontend(before, None);
        }
        let Some(service) = self.services.services.get_mut(name) else { return };
        let port = service.ports.entry(key).or_insert_with(|| Port {
            id,
            frontend,
            target: wanted.target(),
            members: BTreeMap::new(),
        });
        (port.frontend, port.target) = (frontend, wanted.target());
        if before.is_none() {
            // The number is taken from here on.
            let value =
                service_value(&self.services.services[name], &self.services.services[name].ports[&key]);
            self.reconciler.set_service(id, Some(value));
            self.keep_adopted(name, key, id);
        }
        self.refresh_members(name, record, key, wanted);
        self.reconciler
            .set_frontend(frontend, Some(FrontendValue { service: id, kind: FrontendKind::Virtual }));
        self.services.changed.insert((name.clone(), key));
    }

    fn refresh_members(
        &mut self,
        name: &ServiceName,
        record: &ServiceRecord,
        key: PortKey,
        wanted: &schema::ServicePort,
    ) {
        let target = wanted.target();
        let mut members: BTreeMap<(Ipv4Addr, u16), u16> =
            self.services.index.selected(name).map(|address| ((address, target), EQUAL_WEIGHT)).collect();
        for backend in &record.spec.backends {
            let Some(address) = v4(backend.address) else { continue };
            members.insert((address, backend.port.unwrap_or(target)), backend.weight);
        }
        let port = &self.services.services[name].ports[&key];
        let gone: Vec<(Ipv4Addr, u16)> = port
            .members
            .iter()
            .filter(|(at, member)| !members.contains_key(at) && !member.doubtful)
            .map(|(at, _)| *at)
            .collect();
        gone.into_iter().for_each(|at| self.remove_member(name, key, at));
        members.into_iter().for_each(|(at, weight)| self.add_member(name, key, at, weight));
    }

    fn add_member(&mut self, name: &ServiceName, key: PortKey, at: (Ipv4Addr, u16), weight: u16) {
        let port = self.services.services.get(name).and_then(|service| service.ports.get(&key));
        let Some(port) = port else { return };
        let (service, known) = (port.id, port.members.get(&at).copied());
        let id = match known {
            Some(Member { weight: same, doubtful: false, .. }) if same == weight => return,
            Some(member) => member.id,
            None => match self.number_backend(service, at.0, at.1) {
                Some(id) => id,
                None => return self.no_room(name, "backend"),
            },
        };
        self.put_member(name, key, at, Member { id, weight, doubtful: false });
    }

    fn put_member(&mut self, name: &ServiceName, key: PortKey, at: (Ipv4Addr, u16), member: Member) {
        let port = self.services.services.get_mut(name).and_then(|service| service.ports.get_mut(&key));
        let Some(port) = port else { return };
        port.members.insert(at, member);
        let value = BackendValue {
            service: port.id,
            address: at.0.into(),
            port: at.1,
            weight: member.weight,
            state: BackendState::Active,
        };
        self.reconciler.set_backend(member.id, Some(value));
        self.services.changed.insert((name.clone(), key));
    }

    fn remove_member(&mut self, name: &ServiceName, key: PortKey, at: (Ipv4Addr, u16)) {
        let port = self.services.services.get_mut(name).and_then(|service| service.ports.get_mut(&key));
        if let Some(member) = port.and_then(|port| port.members.remove(&at)) {
            self.services.left.insert(member.id);
            self.services.changed.insert((name.clone(), key));
        }
    }

    /// The members that the kernel had at the start stay, until everybody who may know of them has been heard: a peer
    /// that is cut off from the store tells of its newest endpoints by gossip alone.
    fn keep_adopted(&mut self, name: &ServiceName, key: PortKey, service: ServiceId) {
        for (address, port) in self.services.numbers.adopted_of(service) {
            let Some(id) = self.number_backend(service, address, port) else { continue };
            let weight = self.reconciler.applied().backends.get(&id).map_or(EQUAL_WEIGHT, |had| had.weight);
            self.put_member(name, key, (address, port), Member { id, weight, doubtful: true });
        }
    }

    /// Everybody has been heard: what nobody told of is not there.
    pub(crate) fn forget_doubtful_members(&mut self) {
        let mut doubtful = Vec::new();
        for (name, service) in &self.services.services {
            for (key, port) in &service.ports {
                let members = port.members.iter().filter(|(_, member)| member.doubtful);
                doubtful.extend(members.map(|(at, _)| (name.clone(), *key, *at)));
            }
        }
        doubtful.into_iter().for_each(|(name, key, at)| self.remove_member(&name, key, at));
    }

    fn no_room(&mut self, name: &ServiceName, what: &str) {
        self.services.crowded.insert(name.clone());
        self.error(format!("service {name}: no number is free for one more {what}"));
    }
}

/// A service port for the kernel.
fn service_value(service: &Service, port: &Port) -> ServiceValue {
    let mut members: Vec<BackendId> = port.members.values().map(|member| member.id).collect();
    members.sort_unstable();
    ServiceValue {
        algorithm: match service.record.spec.algorithm {
            schema::Algorithm::Maglev => Algorithm::Maglev,
            schema::Algorithm::Random => Algorithm::Random,
        },
        affinity_seconds: 0,
        mode: ServiceMode::Snat,
        source_ranges: Vec::new(),
        members,
    }
}

fn key(port: &schema::ServicePort) -> PortKey {
    (port.protocol, port.port)
}

fn protocol(protocol: ServiceProtocol) -> Protocol {
    match protocol {
        ServiceProtocol::Tcp => Protocol::Tcp,
        ServiceProtocol::Udp => Protocol::Udp,
    }
}

/// The programs have no table for IPv6.
fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
