//! Members of service ports: who they are, what the kernel is told of them, and which take new flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use datapath_plan::{Algorithm, BackendId, BackendState, BackendValue, ServiceId, ServiceMode, ServiceValue};
use identity::ServiceName;
use ipnetwork::IpNetwork;
use kvstore_schema::service::{self as schema, ServiceRecord};

use super::{EQUAL_WEIGHT, Member, Port, PortKey, Scope, Service, v4};
use crate::node::Node;

impl Node {
    /// Makes a service port's members what its record and the endpoints say.
    pub(super) fn refresh_members(
        &mut self,
        name: &ServiceName,
        key: PortKey,
        members: BTreeMap<(Ipv4Addr, u16), u16>,
    ) {
        let Some(port) = self.services.services.get(name).and_then(|service| service.ports.get(&key)) else {
            return;
        };
        let gone: Vec<(Ipv4Addr, u16)> = port
            .members
            .iter()
            .filter(|(at, member)| !members.contains_key(at) && !member.doubtful)
            .map(|(at, _)| *at)
            .collect();
        gone.into_iter().for_each(|at| self.remove_member(name, key, at));
        for (at, weight) in members {
            self.add_member(name, key, at, weight);
            // The service may be checked otherwise now.
            self.member_touched(name, at);
        }
    }

    /// The members that a service port should have, with their weights.
    pub(super) fn wanted_members(
        &self,
        name: &ServiceName,
        record: &ServiceRecord,
        scope: Scope,
        target: u16,
    ) -> BTreeMap<(Ipv4Addr, u16), u16> {
        let selected = self.services.index.selected(name).map(|address| ((address, target), EQUAL_WEIGHT));
        let mut members: BTreeMap<(Ipv4Addr, u16), u16> = selected.collect();
        for backend in &record.spec.backends {
            let Some(address) = v4(backend.address) else { continue };
            members.insert((address, backend.port.unwrap_or(target)), backend.weight);
        }
        if scope == Scope::Local {
            members.retain(|(address, _), _| self.is_here((*address).into()));
        }
        members
    }

    /// A service port for the kernel. O(members).
    pub(super) fn service_value(
        &self,
        service: &Service,
        key: PortKey,
        port: &Port,
        desperate: bool,
    ) -> ServiceValue {
        let spec = &service.record.spec;
        let topology = if key.2 == Scope::Local { schema::Topology::Any } else { spec.topology };
        let active = port.members.iter().filter(|(_, member)| member.gets(desperate) == BackendState::Active);
        let members = self.nearest(topology, active.collect());
        let mut members: Vec<BackendId> = members.map(|(_, member)| member.id).collect();
        members.sort_unstable();
        let source_ranges: BTreeSet<IpNetwork> = spec.source_ranges.iter().copied().collect();
        ServiceValue {
            algorithm: match spec.algorithm {
                schema::Algorithm::Maglev => Algorithm::Maglev,
                schema::Algorithm::Random => Algorithm::Random,
            },
            affinity_seconds: spec.affinity.map_or(0, |affinity| affinity.timeout_seconds),
            mode: match spec.mode {
                schema::Mode::Snat => ServiceMode::Snat,
                schema::Mode::Dsr => ServiceMode::Dsr,
            },
            source_ranges: source_ranges.into_iter().collect(),
            members,
        }
    }

    pub(super) fn add_member(&mut self, name: &ServiceName, key: PortKey, at: (Ipv4Addr, u16), weight: u16) {
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
        // What it may get is looked at when all that has changed is known.
        let state = known.map_or(BackendState::Active, |known| known.state);
        self.put_member(name, key, at, Member { id, weight, state, doubtful: false });
    }

    fn put_member(&mut self, name: &ServiceName, key: PortKey, at: (Ipv4Addr, u16), member: Member) {
        let port = self.services.services.get_mut(name).and_then(|service| service.ports.get_mut(&key));
        let Some(port) = port else { return };
        let new = port.members.insert(at, member).is_none();
        let value = backend_value(port.id, at, &member, false);
        self.reconciler.set(member.id, Some(value));
        self.services.changed.insert((name.clone(), key));
        if new {
            let adopted = self.reconciler.applied().backends.get(&member.id);
            let adopted = adopted.filter(|had| (had.address, had.port) == (value.address, value.port));
            self.member_came(name, at, adopted.map(|had| had.state));
        }
    }

    /// What a member may get may have changed.
    pub(crate) fn restate_member(&mut self, name: &ServiceName, at: (Ipv4Addr, u16)) {
        let (state, _) = self.member_state(name, at);
        let Some(service) = self.services.services.get_mut(name) else { return };
        for (key, port) in &mut service.ports {
            let Some(member) = port.members.get_mut(&at).filter(|member| member.state != state) else {
                continue;
            };
            member.state = state;
            self.reconciler.set(member.id, Some(backend_value(port.id, at, member, false)));
            self.services.changed.insert((name.clone(), *key));
        }
    }

    pub(super) fn remove_member(&mut self, name: &ServiceName, key: PortKey, at: (Ipv4Addr, u16)) {
        let port = self.services.services.get_mut(name).and_then(|service| service.ports.get_mut(&key));
        if let Some(member) = port.and_then(|port| port.members.remove(&at)) {
            self.services.left.insert(member.id);
            self.services.changed.insert((name.clone(), key));
            self.member_went(name, at);
        }
    }

    /// The members that the kernel had at the start stay, until everybody who may know of them has been heard: a peer
    /// that is cut off from the store tells of its newest endpoints by gossip alone.
    pub(super) fn keep_adopted(&mut self, name: &ServiceName, key: PortKey, service: ServiceId) {
        for (address, port) in self.services.numbers.adopted_of(service) {
            let Some(id) = self.number_backend(service, address, port) else { continue };
            let weight = self.reconciler.applied().backends.get(&id).map_or(EQUAL_WEIGHT, |had| had.weight);
            let state = BackendState::Active;
            self.put_member(name, key, (address, port), Member { id, weight, state, doubtful: true });
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

    pub(super) fn no_room(&mut self, name: &ServiceName, what: &str) {
        self.services.crowded.insert(name.clone());
        self.error(format!("service {name}: no number is free for one more {what}"));
    }
}

impl Port {
    /// Whether it has backends, but none is well: then they are all that there is. Those on their way out stay out.
    pub(super) fn is_desperate(&self) -> bool {
        let any = |wanted| self.members.values().any(|member| member.state == wanted);
        !any(BackendState::Active) && any(BackendState::Unhealthy)
    }
}

impl Member {
    /// What it gets, where none of its port may be well.
    fn gets(&self, desperate: bool) -> BackendState {
        match self.state {
            BackendState::Unhealthy if desperate => BackendState::Active,
            state => state,
        }
    }
}

/// A backend for the kernel.
pub(super) fn backend_value(
    service: ServiceId,
    (address, port): (Ipv4Addr, u16),
    member: &Member,
    desperate: bool,
) -> BackendValue {
    let state = member.gets(desperate);
    BackendValue { service, address: address.into(), port, weight: member.weight, state }
}
