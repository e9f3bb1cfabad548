//! Endpoints of a former agent: taken over as they are, named when their records are known.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use datapath_plan::{Attachment, EndpointValue, Generation, Observed};
use identity::{EndpointName, Labels};
use ipnetwork::IpNetwork;

use super::LocalEndpoint;
use crate::{EndpointState, node::Node};

impl Node {
    /// Whether the kernel has been read, and the names of what it has are known.
    pub(crate) fn knows_its_endpoints(&self) -> bool {
        self.audit.observed && (self.audit.trusted.is_some() || self.endpoints.nameless == 0)
    }

    /// Takes over the endpoints that the kernel has from a former agent: they stay as they are (P5).
    pub(crate) fn adopt_endpoints(&mut self, observed: &Observed) {
        self.endpoints.nameless = observed.tables.endpoints.len();
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
                terminating: false,
                detached_after: Generation::default(),
            };
            self.endpoints.last_id = self.endpoints.last_id.max(id.0);
            self.endpoints.by_id.insert(*id, name.clone());
            self.endpoints.by_address.insert(value.address, name.clone());
            self.endpoints.by_name.insert(name, endpoint);
            self.reconciler.set(*id, Some(value.clone()));
            self.desired.addresses.insert(value.address);
        }
        self.recognise_endpoints();
    }

    /// Gives adopted endpoints the names, labels and attachments that the former agent kept. Ethernet addresses are
    /// drawn for each endpoint, so one that has them is the one that was saved.
    fn recognise_endpoints(&mut self) {
        for saved in std::mem::take(&mut self.endpoints.remembered) {
            let adopted =
                self.endpoints.by_id.get(&saved.id).and_then(|name| self.endpoints.by_name.get(name));
            let same = |endpoint: &&LocalEndpoint| {
                endpoint.digest.is_none()
                    && endpoint.address == Some(saved.address)
                    && (endpoint.mac, endpoint.host_mac) == (saved.mac, saved.host_mac)
            };
            if adopted.filter(same).is_some() {
                self.name_endpoint(saved.address, Some(saved.name), saved.labels, saved.attachment);
                self.endpoints.nameless -= 1;
                if saved.terminating {
                    self.set_terminating(saved.address);
                }
                if saved.ready {
                    continue;
                }
            } else if saved.ready {
                self.error(format!(
                    "endpoint {} ({}) is not in the kernel any more",
                    saved.name, saved.address
                ));
                self.endpoints.missing.insert(saved.name);
            }
            // What is kept of it is not so any more.
            self.endpoints.unsaved.insert(saved.id);
        }
        let blocks: Vec<IpNetwork> = self.ipam.pool.blocks().collect();
        blocks.into_iter().for_each(|cidr| self.restore_addresses(cidr));
        self.look_at_own_records();
    }

    /// Gives adopted endpoints the names and labels that their records tell, once both are known.
    pub(crate) fn adopt_records(&mut self) {
        self.started_revision = self.view.revision();
        self.name_endpoints();
        self.forfeit_blocks();
        self.look_at_own_records();
        self.adopt_refs();
    }

    /// Gives endpoints whose labels are not known yet what their records tell, or their identities.
    pub(crate) fn name_endpoints(&mut self) {
        let records = self.view.endpoints().get(&self.config.node).cloned().unwrap_or_default();
        for (ip, name) in self.endpoints.by_address.clone() {
            // What is known of its labels already is not older than its record.
            let Some(endpoint) = self.endpoints.get(&name).filter(|endpoint| endpoint.digest.is_none())
            else {
                continue;
            };
            if let Some(entry) = records.get(&ip) {
                let record = entry.record.clone();
                self.endpoints.unsaved.extend(endpoint.id);
                self.name_endpoint(ip, Some(record.name.clone()), record.labels.clone(), None);
                if record.terminating {
                    self.set_terminating(ip);
                }
            } else if let Some(identity) = endpoint.identity
                && let Some(entry) = self.view.identities().get(&identity)
            {
                let labels = entry.record.labels.clone();
                self.endpoints.unsaved.extend(endpoint.id);
                self.name_endpoint(ip, None, labels, None);
            }
        }
    }

    /// Gives an endpoint whose labels are not known yet what its record tells that somebody who remembers it has written.
    pub(crate) fn name_by_record(&mut self, ip: IpAddr) {
        if self.endpoints.at(ip).is_none_or(|endpoint| endpoint.digest.is_some()) {
            return;
        }
        let entry = self.view.endpoints().get(&self.config.node).and_then(|records| records.get(&ip));
        if let Some(record) = entry.map(|entry| entry.record.clone()) {
            self.name_endpoint(ip, Some(record.name.clone()), record.labels.clone(), None);
            if record.terminating {
                self.set_terminating(ip);
            }
        }
    }

    /// An endpoint of this node is on its way out.
    pub(super) fn set_terminating(&mut self, ip: IpAddr) {
        let Some(name) = self.endpoints.by_address.get(&ip) else { return };
        let Some(endpoint) = self.endpoints.by_name.get_mut(name) else { return };
        endpoint.terminating = true;
        self.desired.addresses.insert(ip);
    }

    /// Completes an endpoint that was taken over. Without a name it keeps that of its device.
    fn name_endpoint(
        &mut self,
        ip: IpAddr,
        name: Option<EndpointName>,
        labels: Labels,
        attachment: Option<Attachment>,
    ) {
        let Some(before) = self.endpoints.by_address.get(&ip).cloned() else { return };
        let Some(mut endpoint) = self.endpoints.by_name.remove(&before) else { return };
        // Two of one name cannot both be right; the second keeps the name of its device.
        if let Some(name) = name.filter(|name| !self.endpoints.by_name.contains_key(name)) {
            endpoint.name = name;
        }
        let counting = self.counting_labels(&labels);
        let digest = counting.digest();
        endpoint.labels = labels;
        endpoint.digest = Some(digest.clone());
        endpoint.attachment = attachment;
        let (name, identity) = (endpoint.name.clone(), endpoint.identity);
        self.endpoints.by_address.insert(ip, name.clone());
        if let Some(id) = endpoint.id {
            self.endpoints.by_id.insert(id, name.clone());
            // The kernel did not tell it, and could not make the endpoint again without.
            let attachment = endpoint.attachment.clone();
            let wanted = self.reconciler.wanted().endpoints.get(&id).cloned();
            self.reconciler.set(id, wanted.map(|value| EndpointValue { attachment, ..value }));
        }
        self.endpoints.by_name.insert(name.clone(), endpoint);
        if let Some(now) = self.use_identity(&digest, &counting).filter(|now| Some(*now) != identity) {
            self.set_identity(&name, now);
        }
    }

    /// Compares all records of this node with its endpoints. Records of endpoints that the kernel has not: the machine
    /// was rebooted, their workloads are gone.
    pub(crate) fn look_at_own_records(&mut self) {
        let records = self.view.endpoints().get(&self.config.node).into_iter().flat_map(BTreeMap::keys);
        let all: Vec<IpAddr> = records.copied().chain(self.endpoints.addresses()).collect();
        all.into_iter().for_each(|ip| self.endpoint_changed(ip));
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
