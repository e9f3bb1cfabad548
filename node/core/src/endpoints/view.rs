//! Endpoints for reading.

use std::net::IpAddr;

use identity::EndpointName;

use super::{Endpoints, LocalEndpoint};
use crate::EndpointView;

impl Endpoints {
    /// This node's endpoints, by name. `is_recorded`: whether the store has the right record for an address.
    pub(crate) fn views(&self, is_recorded: impl Fn(IpAddr) -> bool) -> Vec<EndpointView> {
        let mut all: Vec<&LocalEndpoint> = self.by_name.values().chain(self.detaching.values()).collect();
        all.sort_by_key(|endpoint| (&endpoint.name, endpoint.id));
        all.into_iter().map(|endpoint| endpoint.view(&is_recorded)).collect()
    }

    /// One endpoint of this node.
    pub(crate) fn view(
        &self,
        name: &EndpointName,
        is_recorded: impl Fn(IpAddr) -> bool,
    ) -> Option<EndpointView> {
        self.by_name.get(name).map(|endpoint| endpoint.view(&is_recorded))
    }
}

impl LocalEndpoint {
    fn view(&self, is_recorded: &impl Fn(IpAddr) -> bool) -> EndpointView {
        EndpointView {
            name: self.name.clone(),
            state: self.state,
            id: self.id,
            address: self.address,
            identity: self.identity,
            labels: self.labels.clone(),
            attachment: self.attachment.clone(),
            mac: self.id.map(|_| self.mac.to_string()),
            recorded: self.address.is_some_and(is_recorded),
            terminating: self.terminating,
            error: self.error.clone(),
        }
    }
}
