//! Services for reading.

use std::sync::Arc;

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
                backends: port.map(|port| self.backend_views(port)).unwrap_or_default(),
            }
        });
        ServiceView {
            name: name.clone(),
            record: entry.record.clone(),
            revision: entry.modified,
            ports: ports.collect(),
        }
    }

    fn backend_views(&self, port: &Port) -> Vec<BackendView> {
        let view = |(&(address, port), member): (&(std::net::Ipv4Addr, u16), &super::Member)| {
            let owner = self.endpoint_at(address.into());
            BackendView {
                address: address.into(),
                port,
                weight: member.weight,
                node: owner.as_ref().map(|(node, _)| node.clone()),
                endpoint: owner.map(|(_, name)| name),
            }
        };
        port.members.iter().map(view).collect()
    }
}
