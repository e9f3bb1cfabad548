//! From a service's record to its service ports, and the frontends of each.

use std::collections::BTreeMap;

use datapath_plan::{Frontend, FrontendKind, FrontendValue, ServiceId, ServiceValue};
use identity::ServiceName;
use kvstore_schema::service::{self as schema, EVERY_NODE, ServiceRecord, TrafficPolicy};

use super::{Port, PortKey, Scope, Service, Services, member::member_changed, protocol};
use crate::{changes::MemberChangeKind, context::Context, ipcache::Sources};

/// A service port as its record asks for it.
struct WantedPort {
    key: PortKey,
    target: u16,
    frontends: BTreeMap<Frontend, FrontendKind>,
}

impl Services {
    pub(super) fn refresh_service(&mut self, cx: &mut Context, sources: Sources<'_>, name: &ServiceName) {
        let record = sources.fleet.view().services().get(name).map(|entry| entry.record.clone());
        let selector = record.as_ref().and_then(|record| record.spec.selector.clone());
        self.index.select(name, selector);
        let addresses = record
            .iter()
            .flat_map(|record| record.spec.external_ips.iter().copied().chain([record.virtual_ip]));
        self.use_routes(cx, sources, name, addresses.collect());
        self.note_placed(name, record.as_deref());
        let mut wanted: Vec<WantedPort> = Vec::new();
        if let Some(record) = &record {
            for port in &record.spec.ports {
                for scope in [Scope::Fleet, Scope::Local] {
                    let frontends = self.frontends(sources, name, record, port, scope);
                    if !frontends.is_empty() {
                        wanted.push(WantedPort { key: key(port, scope), target: port.target(), frontends });
                    }
                }
            }
        }
        for key in self.targets(name).into_iter().map(|(key, _)| key) {
            if !wanted.iter().any(|wanted| wanted.key == key) {
                self.remove_port(cx, name, key);
            }
        }
        let Some(record) = &record else {
            self.services.remove(name);
            return;
        };
        match self.services.get_mut(name) {
            Some(service) => service.record = record.clone(),
            None => {
                let service = Service { record: record.clone(), ports: BTreeMap::new() };
                self.services.insert(name.clone(), service);
            }
        }
        for port in wanted {
            self.refresh_port(cx, sources, name, record, port);
        }
    }

    /// The frontends of one scope of a port. The virtual IP leads to all backends; the host port leads to this node's
    /// backends only, and with the traffic policy `local` so do node port and external addresses.
    fn frontends(
        &self,
        sources: Sources<'_>,
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
        let external_scope = match record.spec.traffic_policy {
            TrafficPolicy::Fleet => Scope::Fleet,
            TrafficPolicy::Local => Scope::Local,
        };
        if scope == external_scope {
            let node_port = record.node_port(port).map(|number| at(EVERY_NODE, number));
            frontends.extend(node_port.map(|frontend| (frontend, FrontendKind::NodePort)));
            let external = record.spec.external_ips.iter().map(|address| at(*address, port.port));
            frontends.extend(external.map(|frontend| (frontend, FrontendKind::External)));
        }
        if scope == Scope::Local
            && let Some(number) = port.host_port
            && !self.wanted_members(sources, name, record, scope, port.target()).is_empty()
        {
            frontends.insert(at(EVERY_NODE, number), FrontendKind::HostPort);
        }
        frontends
    }

    fn remove_port(&mut self, cx: &mut Context, name: &ServiceName, key: PortKey) {
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(port) = service.ports.remove(&key) else { return };
        port.frontends.keys().for_each(|frontend| remove_frontend(cx, *frontend, port.id));
        cx.kernel.set::<ServiceValue>(port.id, None);
        self.all_unhealthy.remove(&(name.clone(), key));
        for at in port.members.keys() {
            member_changed(cx, name, *at, MemberChangeKind::Went);
        }
        self.left.extend(port.members.values().map(|member| member.id));
    }

    fn refresh_port(
        &mut self,
        cx: &mut Context,
        sources: Sources<'_>,
        name: &ServiceName,
        record: &ServiceRecord,
        WantedPort { key, target, frontends }: WantedPort,
    ) {
        let known = self.services.get(name).and_then(|service| service.ports.get(&key));
        let (id, before) = match known {
            Some(port) => (port.id, Some(port.frontends.clone())),
            None => match self.numbers.service(cx, &frontends) {
                Some(id) => (id, None),
                None => return self.no_room(cx, name, "service port"),
            },
        };
        for frontend in before.iter().flat_map(BTreeMap::keys).filter(|it| !frontends.contains_key(it)) {
            remove_frontend(cx, *frontend, id);
        }
        let Some(service) = self.services.get_mut(name) else { return };
        let port = service.ports.entry(key).or_insert_with(|| Port {
            id,
            frontends: BTreeMap::new(),
            target,
            members: BTreeMap::new(),
        });
        (port.frontends, port.target) = (frontends.clone(), target);
        if before.is_none() {
            // From here on the number is taken.
            let service = &self.services[name];
            let value = self.service_value(cx, sources, service, key, &service.ports[&key], false);
            cx.kernel.set(id, Some(value));
            self.keep_adopted(cx, name, key, id);
        }
        let members = self.wanted_members(sources, name, record, key.2, target);
        self.refresh_members(cx, name, key, members);
        for (frontend, kind) in frontends {
            cx.kernel.set(frontend, Some(FrontendValue { service: id, kind }));
        }
        self.changed.insert((name.clone(), key));
    }
}

pub(super) fn key(port: &schema::ServicePort, scope: Scope) -> PortKey {
    (port.protocol, port.port, scope)
}

/// Takes a frontend out of the kernel, unless another service has it by now.
fn remove_frontend(cx: &mut Context, frontend: Frontend, of: ServiceId) {
    if cx.kernel.wanted().frontends.get(&frontend).is_some_and(|value| value.service == of) {
        cx.kernel.set::<FrontendValue>(frontend, None);
    }
}
