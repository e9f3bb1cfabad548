//! Members of service ports: which backends a port has, their state, and what the kernel is told of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use datapath_plan::{Algorithm, BackendId, BackendState, BackendValue, ServiceId, ServiceMode, ServiceValue};
use identity::ServiceName;
use ipnetwork::IpNetwork;
use kvstore_schema::service::{self as schema, ServiceRecord};

use super::{EQUAL_WEIGHT, Member, Port, PortKey, Scope, Service, Services, place, v4};
use crate::{
    changes::{MemberChange, MemberChangeKind},
    context::Context,
    health::MemberState,
    ipcache::Sources,
};

impl Services {
    /// Makes a service port's members what its record and the endpoints say.
    pub(super) fn refresh_members(
        &mut self,
        cx: &mut Context,
        name: &ServiceName,
        key: PortKey,
        members: BTreeMap<(Ipv4Addr, u16), u16>,
    ) {
        let Some(port) = self.port(name, key) else { return };
        let gone = port
            .members
            .iter()
            .filter(|(at, member)| !members.contains_key(at) && !member.unconfirmed)
            .map(|(at, _)| *at);
        gone.collect::<Vec<_>>().into_iter().for_each(|at| self.remove_member(cx, name, key, at));
        for (at, weight) in members {
            self.add_member(cx, name, key, at, weight);
            member_changed(cx, name, at, MemberChangeKind::Touched);
        }
    }

    fn port(&self, name: &ServiceName, key: PortKey) -> Option<&Port> {
        self.services.get(name)?.ports.get(&key)
    }

    fn port_mut(&mut self, name: &ServiceName, key: PortKey) -> Option<&mut Port> {
        self.services.get_mut(name)?.ports.get_mut(&key)
    }

    /// The members that a service port should have, with their weights.
    pub(super) fn wanted_members(
        &self,
        sources: Sources<'_>,
        name: &ServiceName,
        record: &ServiceRecord,
        scope: Scope,
        target: u16,
    ) -> BTreeMap<(Ipv4Addr, u16), u16> {
        let selected = self.index.selected(name).map(|address| ((address, target), EQUAL_WEIGHT));
        let mut members: BTreeMap<(Ipv4Addr, u16), u16> = selected.collect();
        for backend in &record.spec.backends {
            let Some(address) = v4(backend.address) else { continue };
            members.insert((address, backend.port.unwrap_or(target)), backend.weight);
        }
        if scope == Scope::Local {
            members.retain(|(address, _), _| place::is_here(sources, (*address).into()));
        }
        members
    }

    /// A service port for the kernel. O(members).
    pub(super) fn service_value(
        &self,
        cx: &Context,
        sources: Sources<'_>,
        service: &Service,
        key: PortKey,
        port: &Port,
        all_unhealthy: bool,
    ) -> ServiceValue {
        let spec = &service.record.spec;
        let topology = if key.2 == Scope::Local { schema::Topology::Any } else { spec.topology };
        let is_active = |member: &Member| member.kernel_state(all_unhealthy) == BackendState::Active;
        let active = port.members.iter().filter(|(_, member)| is_active(member));
        let members = self.nearest(&cx.config, sources, topology, active.collect());
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

    pub(super) fn add_member(
        &mut self,
        cx: &mut Context,
        name: &ServiceName,
        key: PortKey,
        at: (Ipv4Addr, u16),
        weight: u16,
    ) {
        let Some(port) = self.port(name, key) else { return };
        let (service, known) = (port.id, port.members.get(&at).copied());
        let id = match known {
            Some(Member { weight: same, unconfirmed: false, .. }) if same == weight => return,
            Some(member) => member.id,
            None => match self.numbers.backend(cx, service, at) {
                Some(id) => id,
                None => return self.no_room(cx, name, "backend"),
            },
        };
        // The state is computed when all that has changed is known.
        let state = known.map_or(BackendState::Active, |known| known.state);
        self.put_member(cx, name, key, at, Member { id, weight, state, unconfirmed: false });
    }

    fn put_member(
        &mut self,
        cx: &mut Context,
        name: &ServiceName,
        key: PortKey,
        at: (Ipv4Addr, u16),
        member: Member,
    ) {
        let Some(port) = self.port_mut(name, key) else { return };
        let new = port.members.insert(at, member).is_none();
        let value = backend_value(port.id, at, &member, false);
        self.changed.insert((name.clone(), key));
        if new {
            let adopted = cx.kernel.applied().backends.get(&member.id);
            let adopted = adopted.filter(|had| (had.address, had.port) == (value.address, value.port));
            let adopted = adopted.map(|had| had.state);
            member_changed(cx, name, at, MemberChangeKind::Came { adopted });
        }
        cx.kernel.set(member.id, Some(value));
    }

    /// Takes in the states of members that `Health` has computed.
    pub(crate) fn set_states(&mut self, cx: &mut Context, states: Vec<MemberState>) {
        for MemberState { service: name, address, port, state } in states {
            let at = (address, port);
            let Some(service) = self.services.get_mut(&name) else { continue };
            for (key, port) in &mut service.ports {
                let Some(member) = port.members.get_mut(&at).filter(|member| member.state != state) else {
                    continue;
                };
                member.state = state;
                cx.kernel.set(member.id, Some(backend_value(port.id, at, member, false)));
                self.changed.insert((name.clone(), *key));
            }
        }
    }

    pub(super) fn remove_member(
        &mut self,
        cx: &mut Context,
        name: &ServiceName,
        key: PortKey,
        at: (Ipv4Addr, u16),
    ) {
        if let Some(member) = self.port_mut(name, key).and_then(|port| port.members.remove(&at)) {
            self.left.insert(member.id);
            self.changed.insert((name.clone(), key));
            member_changed(cx, name, at, MemberChangeKind::Went);
        }
    }

    /// The members that the kernel had at the start stay until all sources have been heard: a peer that is cut off from
    /// the store reports its newest endpoints by gossip only.
    pub(super) fn keep_adopted(
        &mut self,
        cx: &mut Context,
        name: &ServiceName,
        key: PortKey,
        service: ServiceId,
    ) {
        for at in self.numbers.adopted_of(service) {
            let Some(id) = self.numbers.backend(cx, service, at) else { continue };
            let weight = cx.kernel.applied().backends.get(&id).map_or(EQUAL_WEIGHT, |had| had.weight);
            let state = BackendState::Active;
            self.put_member(cx, name, key, at, Member { id, weight, state, unconfirmed: true });
        }
    }

    /// All sources have been heard: members that none of them confirmed do not exist.
    pub(crate) fn forget_unconfirmed(&mut self, cx: &mut Context) {
        let mut unconfirmed = Vec::new();
        for (name, service) in &self.services {
            for (key, port) in &service.ports {
                let members = port.members.iter().filter(|(_, member)| member.unconfirmed);
                unconfirmed.extend(members.map(|(at, _)| (name.clone(), *key, *at)));
            }
        }
        unconfirmed.into_iter().for_each(|(name, key, at)| self.remove_member(cx, &name, key, at));
    }

    pub(super) fn no_room(&mut self, cx: &mut Context, name: &ServiceName, what: &str) {
        self.crowded.insert(name.clone());
        cx.error(format!("service {name}: no number is free for one more {what}"));
    }
}

pub(super) fn member_changed(
    cx: &mut Context,
    service: &ServiceName,
    (address, port): (Ipv4Addr, u16),
    kind: MemberChangeKind,
) {
    cx.changes.members.push(MemberChange { service: service.clone(), address, port, kind });
}

impl Port {
    /// Whether none of its backends is healthy, so that all are used (Envoy: panic mode). Terminating ones stay out.
    pub(super) fn is_all_unhealthy(&self) -> bool {
        let any = |wanted| self.members.values().any(|member| member.state == wanted);
        !any(BackendState::Active) && any(BackendState::Unhealthy)
    }
}

impl Member {
    /// The state that the kernel is told.
    fn kernel_state(&self, all_unhealthy: bool) -> BackendState {
        match self.state {
            BackendState::Unhealthy if all_unhealthy => BackendState::Active,
            state => state,
        }
    }
}

/// A backend for the kernel.
pub(super) fn backend_value(
    service: ServiceId,
    (address, port): (Ipv4Addr, u16),
    member: &Member,
    all_unhealthy: bool,
) -> BackendValue {
    let state = member.kernel_state(all_unhealthy);
    BackendValue { service, address: address.into(), port, weight: member.weight, state }
}
