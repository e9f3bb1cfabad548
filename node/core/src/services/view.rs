//! Services for reading.

use std::{net::Ipv4Addr, sync::Arc};

use datapath_plan::BackendState;
use identity::ServiceName;
use kvstore_claims::Entry;
use kvstore_schema::service::ServiceRecord;

use super::{Member, Port, Scope, Services, port::key};
use crate::{
    BackendView, ServicePortView, ServiceView,
    health::Health,
    ipcache::{Ipcache, Sources},
};

impl Services {
    /// Services whose backends are all unhealthy, so that all are used.
    pub(crate) fn warnings(&self, health: &Health, sources: Sources<'_>) -> impl Iterator<Item = String> {
        self.all_unhealthy.iter().filter_map(move |(name, key)| {
            let members = &self.services.get(name)?.ports.get(key)?.members;
            let (at, _) = members.iter().find(|(_, member)| member.state == BackendState::Unhealthy)?;
            let (_, why) = health.member_state(sources, name, *at);
            let (protocol, port, scope) = key;
            let here = if *scope == Scope::Local { " on this node" } else { "" };
            Some(format!(
                "service {name}, port {port}/{protocol}: all of its {} backends{here} are unhealthy, so all are used ({}:{}: {})",
                members.len(),
                at.0,
                at.1,
                why.unwrap_or_default()
            ))
        })
    }

    /// A service, for reading.
    pub(crate) fn view(
        &self,
        health: &Health,
        ipcache: &Ipcache,
        sources: Sources<'_>,
        name: &ServiceName,
        entry: &Entry<Arc<ServiceRecord>>,
    ) -> ServiceView {
        let service = self.services.get(name);
        let port = |wanted| service.and_then(|service| service.ports.get(&key(wanted, Scope::Fleet)));
        let backend = |(&(address, port), member): (&(Ipv4Addr, u16), &Member)| {
            let endpoint = ipcache.endpoint_at(sources, address.into());
            let (state, reason) = health.member_state(sources, name, (address, port));
            BackendView {
                address: address.into(),
                port,
                weight: member.weight,
                state,
                reason,
                node: endpoint.as_ref().map(|(node, _)| node.clone()),
                endpoint: endpoint.map(|(_, name)| name),
            }
        };
        let ports = entry.record.spec.ports.iter().map(|wanted| {
            let port = port(wanted);
            ServicePortView {
                name: wanted.name.clone(),
                protocol: wanted.protocol,
                port: wanted.port,
                node_port: entry.record.node_port(wanted),
                id: port.map(|port| port.id),
                all_unhealthy: port.is_some_and(Port::is_all_unhealthy),
                backends: port.into_iter().flat_map(|port| &port.members).map(backend).collect(),
            }
        });
        ServiceView {
            name: name.clone(),
            record: entry.record.clone(),
            revision: entry.modified,
            ports: ports.collect(),
        }
    }
}
