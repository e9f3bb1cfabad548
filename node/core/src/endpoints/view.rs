//! Endpoints for reading.

use identity::EndpointName;

use super::LocalEndpoint;
use crate::{EndpointView, node::Node};

impl Node {
    /// This node's endpoints, by name.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        let detaching = self.endpoints.detaching.values();
        let mut all: Vec<&LocalEndpoint> = self.endpoints.by_name.values().chain(detaching).collect();
        all.sort_by_key(|endpoint| (&endpoint.name, endpoint.id));
        all.into_iter().map(|endpoint| self.endpoint_view(endpoint)).collect()
    }

    /// One endpoint of this node.
    pub fn endpoint(&self, name: &EndpointName) -> Option<EndpointView> {
        self.endpoints.get(name).map(|endpoint| self.endpoint_view(endpoint))
    }

    fn endpoint_view(&self, endpoint: &LocalEndpoint) -> EndpointView {
        EndpointView {
            name: endpoint.name.clone(),
            state: endpoint.state,
            id: endpoint.id,
            address: endpoint.address,
            identity: endpoint.identity,
            labels: endpoint.labels.clone(),
            attachment: endpoint.attachment.clone(),
            mac: endpoint.id.map(|_| endpoint.mac.to_string()),
            recorded: endpoint.address.is_some_and(|ip| self.is_recorded(ip)),
            terminating: endpoint.terminating,
            error: endpoint.error.clone(),
        }
    }
}
