//! Services for reading.

use std::sync::Arc;

use datapath_plan::BackendState;
use identity::ServiceName;
use kvstore_claims::Entry;
use kvstore_schema::service::ServiceRecord;

use super::{Port, Scope, port::key};
use crate::{BackendView, ServicePortView, ServiceView, node::Node};

impl Node {
    /// The fleet's services, by name.
    pub fn services(&self) -> Vec<ServiceView> {
        self.view.services().iter().map(|(name, entry)| self.service_view(name, entry)).collect()
    }

    /// One service.
    pub fn service(&self, name: &ServiceName) -> Option<ServiceView> {
        self.view.services().get(name).map(|entry| self.service_view(name, entry))
    }

    /// Services that use backends which are not well, since they have no others; and what is told of too many to be told.
    pub(crate) fn health_warnings(&self) -> impl Iterator<Item = String> {
        let desperate = self.services.desperate.iter().filter_map(|(name, key)| {
            let members = &self.services.services.get(name)?.ports.get(key)?.members;
            let (at, _) = members.iter().find(|(_, member)| member.state == BackendState::Unhealthy)?;
            let (_, why) = self.member_state(name, *at);
            let (protocol, port, scope) = key;
            let here = if *scope == Scope::Local { " on this node" } else { "" };
            Some(format!(
                "service {name}, port {port}/{protocol}: none of its {} backends{here} is well, so all are used ({}:{}: {})",
                members.len(),
                at.0,
                at.1,
                why.unwrap_or_default()
            ))
        });
        desperate.chain(self.untold_warning())
    }

    fn service_view(&self, name: &ServiceName, entry: &Entry<Arc<ServiceRecord>>) -> ServiceView {
        let service = self.services.services.get(name);
        let port = |wanted| service.and_then(|service| service.ports.get(&key(wanted, Scope::Fleet)));
        let ports = entry.record.spec.ports.iter().map(|wanted| {
            let port = port(wanted);
            ServicePortView {
                name: wanted.name.clone(),
                protocol: wanted.protocol,
                port: wanted.port,
                node_port: entry.record.node_port(wanted),
                id: port.map(|port| port.id),
                desperate: port.is_some_and(Port::is_desperate),
                backends: port.map(|port| self.backend_views(name, port)).unwrap_or_default(),
            }
        });
        ServiceView {
            name: name.clone(),
            record: entry.record.clone(),
            revision: entry.modified,
            ports: ports.collect(),
        }
    }

    fn backend_views(&self, name: &ServiceName, port: &Port) -> Vec<BackendView> {
        let view = |(&(address, port), member): (&(std::net::Ipv4Addr, u16), &super::Member)| {
            let owner = self.endpoint_at(address.into());
            let (state, reason) = self.member_state(name, (address, port));
            BackendView {
                address: address.into(),
                port,
                weight: member.weight,
                state,
                reason,
                node: owner.as_ref().map(|(node, _)| node.clone()),
                endpoint: owner.map(|(_, name)| name),
            }
        };
        port.members.iter().map(view).collect()
    }
}
