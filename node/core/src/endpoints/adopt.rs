//! Endpoints of a former agent: taken over as they are, named when their records are known.

use std::{net::IpAddr, time::Duration};

use datapath_plan::Observed;
use identity::{EndpointName, Labels};
use ipnetwork::IpNetwork;

use super::LocalEndpoint;
use crate::{EndpointState, node::Node};

impl Node {
    /// Whether the kernel has been read, and the names of what it has are known.
    pub(crate) fn knows_its_endpoints(&self) -> bool {
        let none_adopted = || self.endpoints.adopted == 0;
        self.audit.observed && (self.audit.trusted.is_some() || none_adopted())
    }

    /// Takes over the endpoints that the kernel has from a former agent: they stay as they are (P5).
    pub(crate) fn adopt_endpoints(&mut self, observed: &Observed) {
        self.endpoints.adopted = observed.tables.endpoints.len();
        self.endpoints.devices = observed.endpoint_devices.iter().copied().collect();
        for (id, value) in &observed.tables.endpoints {
            let name = EndpointName::new(&format!("wrn{id}")).expect("letters and digits are a name");
            let endpoint = LocalEndpoint {
                name: name.clone(),
                labels: Labels::default(),
                digest: None,
                attachment: None,
                wanted_address: None,
                id: Some(*id),
                address: Some(value.address),
                identity: Some(value.identity),
                mac: value.mac,
                host_mac: value.host_mac,
                state: EndpointState::Ready,
                callers: Vec::new(),
                deadline: Duration::ZERO,
                error: None,
            };
            self.endpoints.last_id = self.endpoints.last_id.max(id.0);
            self.endpoints.by_id.insert(*id, name.clone());
            self.endpoints.by_address.insert(value.address, name.clone());
            self.endpoints.by_name.insert(name, endpoint);
            self.reconciler.set_endpoint(*id, Some(value.clone()));
            self.desired.addresses.insert(value.address);
        }
    }

    /// Gives adopted endpoints the names and labels that their records tell, once both are known.
    pub(crate) fn adopt_records(&mut self) {
        self.started_revision = self.view.revision();
        let records = self.view.endpoints().get(&self.config.node).cloned().unwrap_or_default();
        for (ip, name) in self.endpoints.by_address.clone() {
            let Some(mut endpoint) = self.endpoints.by_name.remove(&name) else { continue };
            if let Some(entry) = records.get(&ip) {
                // Two records of one name cannot both be right; the second keeps the name of its device.
                if !self.endpoints.by_name.contains_key(&entry.record.name) {
                    endpoint.name = entry.record.name.clone();
                }
                endpoint.labels = entry.record.labels.clone();
            } else if let Some(identity) = endpoint.identity
                && let Some(entry) = self.view.identities().get(&identity)
            {
                endpoint.labels = entry.record.labels.clone();
            } else {
                self.endpoints.by_name.insert(name, endpoint);
                continue;
            }
            let counting = self.counting_labels(&endpoint.labels);
            let digest = counting.digest();
            endpoint.digest = Some(digest.clone());
            let name = endpoint.name.clone();
            let before = endpoint.identity;
            self.endpoints.by_address.insert(ip, name.clone());
            endpoint.id.into_iter().for_each(|id| drop(self.endpoints.by_id.insert(id, name.clone())));
            self.endpoints.by_name.insert(name.clone(), endpoint);
            if let Some(identity) = self.use_identity(&digest, &counting).filter(|now| Some(*now) != before) {
                self.set_identity(&name, identity);
            }
        }
        // Records of endpoints that the kernel has not: the machine was rebooted, their workloads are gone.
        let all: Vec<IpAddr> = records.keys().copied().chain(self.endpoints.addresses()).collect();
        all.into_iter().for_each(|ip| self.endpoint_changed(ip));
        self.adopt_refs();
    }

    /// Takes the addresses of endpoints in a block back into use.
    pub(crate) fn restore_addresses(&mut self, cidr: IpNetwork) {
        let detaching = self.endpoints.detaching.values().filter_map(|endpoint| endpoint.address);
        let ours: Vec<IpAddr> =
            self.endpoints.addresses().chain(detaching).filter(|ip| cidr.contains(*ip)).collect();
        for ip in ours {
            if !self.ipam.pool.is_used(ip)
                && let Err(error) = self.ipam.pool.restore(ip)
            {
                self.error(format!("endpoint address {ip}: {error}"));
            }
            self.endpoint_changed(ip);
        }
    }
}
