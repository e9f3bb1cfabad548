//! Services for reading.

use std::sync::Arc;

use identity::ServiceName;
use kvstore_claims::Entry;
use kvstore_schema::service::ServiceRecord;

use crate::{ServiceView, node::Node};

impl Node {
    /// The fleet's services, by name.
    pub fn services(&self) -> Vec<ServiceView> {
        self.view.services().iter().map(|(name, entry)| service_view(name, entry)).collect()
    }

    /// One service.
    pub fn service(&self, name: &ServiceName) -> Option<ServiceView> {
        self.view.services().get(name).map(|entry| service_view(name, entry))
    }
}

fn service_view(name: &ServiceName, entry: &Entry<Arc<ServiceRecord>>) -> ServiceView {
    ServiceView { name: name.clone(), record: entry.record.clone(), revision: entry.modified }
}
