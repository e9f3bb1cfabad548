//! From a service's record to its service ports: which there are, and where each is reached.

use std::collections::BTreeMap;

use datapath_plan::{Frontend, FrontendKind, FrontendValue, ServiceId, ServiceValue};
use identity::ServiceName;
use kvstore_schema::service::{self as schema, EVERY_NODE, ServiceRecord, TrafficPolicy};

use super::{Port, PortKey, Scope, Service, protocol};
use crate::node::Node;

impl Node {
    pub(super) fn refresh_service(&mut self, name: &ServiceName) {
        let record = self.view.services().get(name).map(|entry| entry.record.clone());
        let selector = record.as_ref().and_then(|record| record.spec.selector.clone());
        self.services.index.select(name, selector);
        let addresses = record
            .iter()
            .flat_map(|record| record.spec.external_ips.iter().copied().chain([record.virtual_ip]));
        self.use_routes(name, addresses.collect());
        self.note_placed(name, record.as_deref());
        let mut wanted: Vec<(PortKey, &schema::ServicePort, BTreeMap<Frontend, FrontendKind>)> = Vec::new();
        if let Some(record) = &record {
            for port in &record.spec.ports {
                for scope in [Scope::Fleet, Scope::Local] {
                    let frontends = self.frontends(name, record, port, scope);
                    if !frontends.is_empty() {
                        wanted.push((key(port, scope), port, frontends));
                    }
                }
            }
        }
        for key in self.targets(name).into_iter().map(|(key, _)| key) {
            if !wanted.iter().any(|(wanted, ..)| *wanted == key) {
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
        for (key, port, frontends) in wanted {
            self.refresh_port(name, record, key, port, frontends);
        }
    }

    /// Where one scope of a port is reached. Everybody uses the virtual IP; who gets only this node's backends uses the
    /// host port, and with the traffic policy `local` node port and external addresses too.
    fn frontends(
        &self,
        name: &ServiceName,
        record: &ServiceRecord,
        port: &schema::ServicePort,
        scope: Scope,
    ) -> BTreeMap<Frontend, FrontendKind> {
        let at =
            |address, port_number| Frontend { address, port: port_number, protocol: protocol(port.protocol) };
        let mut frontends = BTreeMap::new();
        if scope == Scope::Fleet {
            frontends.insert(at(record.virtual_ip, port.port), FrontendKind::Virtual);
        }
        let outside = match record.spec.traffic_policy {
            TrafficPolicy::Fleet => Scope::Fleet,
            TrafficPolicy::Local => Scope::Local,
        };
        if scope == outside {
            let node_port = record.node_port(port).map(|number| at(EVERY_NODE, number));
            frontends.extend(node_port.map(|frontend| (frontend, FrontendKind::NodePort)));
            let external = record.spec.external_ips.iter().map(|address| at(*address, port.port));
            frontends.extend(external.map(|frontend| (frontend, FrontendKind::External)));
        }
        if scope == Scope::Local
            && let Some(number) = port.host_port
            && !self.wanted_members(name, record, scope, port.target()).is_empty()
        {
            frontends.insert(at(EVERY_NODE, number), FrontendKind::HostPort);
        }
        frontends
    }

    fn remove_port(&mut self, name: &ServiceName, key: PortKey) {
        let Some(service) = self.services.services.get_mut(name) else { return };
        let Some(port) = service.ports.remove(&key) else { return };
        port.frontends.keys().for_each(|frontend| self.remove_frontend(*frontend, port.id));
        self.reconciler.set::<ServiceValue>(port.id, None);
        self.services.desperate.remove(&(name.clone(), key));
        port.members.keys().for_each(|at| self.member_went(name, *at));
        self.services.left.extend(port.members.values().map(|member| member.id));
    }

    /// Another service may have it by now.
    fn remove_frontend(&mut self, frontend: Frontend, of: ServiceId) {
        if self.reconciler.wanted().frontends.get(&frontend).is_some_and(|value| value.service == of) {
            self.reconciler.set::<FrontendValue>(frontend, None);
        }
    }

    fn refresh_port(
        &mut self,
        name: &ServiceName,
        record: &ServiceRecord,
        key: PortKey,
        wanted: &schema::ServicePort,
        frontends: BTreeMap<Frontend, FrontendKind>,
    ) {
        let known = self.services.services.get(name).and_then(|service| service.ports.get(&key));
        let (id, before) = match known {
            Some(port) => (port.id, Some(port.frontends.clone())),
            None => match self.number_service(&frontends) {
                Some(id) => (id, None),
                None => return self.no_room(name, "service port"),
            },
        };
        for frontend in before.iter().flat_map(BTreeMap::keys).filter(|it| !frontends.contains_key(it)) {
            self.remove_frontend(*frontend, id);
        }
        let target = wanted.target();
        let Some(service) = self.services.services.get_mut(name) else { return };
        let port = service.ports.entry(key).or_insert_with(|| Port {
            id,
            frontends: BTreeMap::new(),
            target,
            members: BTreeMap::new(),
        });
        (port.frontends, port.target) = (frontends.clone(), target);
        if before.is_none() {
            // The number is taken from here on.
            let service = &self.services.services[name];
            let value = self.service_value(service, key, &service.ports[&key], false);
            self.reconciler.set(id, Some(value));
            self.keep_adopted(name, key, id);
        }
        let members = self.wanted_members(name, record, key.2, target);
        self.refresh_members(name, key, members);
        for (frontend, kind) in frontends {
            self.reconciler.set(frontend, Some(FrontendValue { service: id, kind }));
        }
        self.services.changed.insert((name.clone(), key));
    }
}

pub(super) fn key(port: &schema::ServicePort, scope: Scope) -> PortKey {
    (port.protocol, port.port, scope)
}
