//! Endpoints of a former agent: adopted as they are, named when their records are known.

use std::{net::IpAddr, time::Duration};

use datapath_plan::{Attachment, EndpointValue, Generation, Observed};
use identity::{EndpointName, Labels};
use ipnetwork::IpNetwork;
use kvstore_schema::record::EndpointRecord;

use super::{Allocators, Endpoints, LocalEndpoint};
use crate::{EndpointState, SavedEndpoint, context::Context, fleet::Fleet, ipam::Ipam};

impl Endpoints {
    /// Keeps what the former agent saved until the kernel has been read.
    pub(crate) fn restore(&mut self, saved: Vec<SavedEndpoint>) {
        self.saved = saved;
    }

    /// Adopts the endpoints that the kernel has from a former agent: they stay as they are (P5).
    pub(crate) fn adopt(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>, observed: &Observed) {
        self.nameless = observed.tables.endpoints.len();
        self.devices = observed.endpoint_devices.iter().copied().collect();
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
            self.last_id = self.last_id.max(id.0);
            self.by_id.insert(*id, name.clone());
            self.by_address.insert(value.address, name.clone());
            self.by_name.insert(name, endpoint);
            cx.kernel.set(*id, Some(value.clone()));
            cx.changes.addresses.insert(value.address);
        }
        self.recognise(cx, allocators);
    }

    /// Gives adopted endpoints the names, labels and attachments that the former agent saved. Ethernet addresses are
    /// drawn for each endpoint, so an endpoint that has the saved ones is the one that was saved.
    fn recognise(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>) {
        for saved in std::mem::take(&mut self.saved) {
            let adopted = self.by_id.get(&saved.id).and_then(|name| self.by_name.get(name));
            let same = |endpoint: &&LocalEndpoint| {
                endpoint.digest.is_none()
                    && endpoint.address == Some(saved.address)
                    && (endpoint.mac, endpoint.host_mac) == (saved.mac, saved.host_mac)
            };
            if adopted.filter(same).is_some() {
                self.name(cx, allocators, saved.address, Some(saved.name), saved.labels, saved.attachment);
                self.nameless -= 1;
                if saved.terminating {
                    self.set_terminating(cx, saved.address);
                }
                if saved.ready {
                    continue;
                }
            } else if saved.ready {
                let SavedEndpoint { name, address, .. } = saved;
                cx.error(format!("endpoint {name} ({address}) is not in the kernel any more"));
                self.missing.insert(name);
            }
            // The file says what is not so any more.
            cx.changes.endpoint_files.insert(saved.id);
        }
        for block in allocators.ipam.blocks() {
            self.restore_addresses(cx, allocators.ipam, block);
        }
    }

    /// Names endpoints whose labels are not known yet after their records, or labels them after their identities.
    pub(crate) fn name_all(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>) {
        for (ip, name) in self.by_address.clone() {
            // Labels that are known already are not older than the record.
            let Some(endpoint) = self.by_name.get(&name).filter(|endpoint| endpoint.digest.is_none()) else {
                continue;
            };
            let (id, identity) = (endpoint.id, endpoint.identity);
            let fleet = allocators.fleet;
            if let Some(entry) = fleet.record(fleet.node(), ip) {
                cx.changes.endpoint_files.extend(id);
                self.name_after(cx, allocators, ip, &entry.record);
            } else if let Some(labels) = identity.and_then(|identity| fleet.labels_of(identity)) {
                cx.changes.endpoint_files.extend(id);
                self.name(cx, allocators, ip, None, labels.clone(), None);
            }
        }
    }

    /// Names an endpoint whose labels are not known yet after its record, which another member remembered and has
    /// written.
    pub(crate) fn name_by_record(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>, ip: IpAddr) {
        if self.at(ip).is_none_or(|endpoint| endpoint.digest.is_some()) {
            return;
        }
        if let Some(entry) = allocators.fleet.record(allocators.fleet.node(), ip) {
            self.name_after(cx, allocators, ip, &entry.record);
        }
    }

    fn name_after(
        &mut self,
        cx: &mut Context,
        allocators: &mut Allocators<'_>,
        ip: IpAddr,
        record: &EndpointRecord,
    ) {
        self.name(cx, allocators, ip, Some(record.name.clone()), record.labels.clone(), None);
        if record.terminating {
            self.set_terminating(cx, ip);
        }
    }

    /// An endpoint of this node is drained.
    pub(super) fn set_terminating(&mut self, cx: &mut Context, ip: IpAddr) {
        let Some(name) = self.by_address.get(&ip) else { return };
        let Some(endpoint) = self.by_name.get_mut(name) else { return };
        endpoint.terminating = true;
        cx.changes.addresses.insert(ip);
    }

    /// Completes an adopted endpoint. Without a name it keeps that of its device.
    fn name(
        &mut self,
        cx: &mut Context,
        allocators: &mut Allocators<'_>,
        ip: IpAddr,
        name: Option<EndpointName>,
        labels: Labels,
        attachment: Option<Attachment>,
    ) {
        let Some(before) = self.by_address.get(&ip).cloned() else { return };
        let Some(mut endpoint) = self.by_name.remove(&before) else { return };
        // Two endpoints of one name cannot both be right; the second keeps the name of its device.
        if let Some(name) = name.filter(|name| !self.by_name.contains_key(name)) {
            endpoint.name = name;
        }
        let counting = cx.identity_labels(&labels);
        let digest = counting.digest();
        endpoint.labels = labels;
        endpoint.digest = Some(digest.clone());
        endpoint.attachment = attachment;
        let (name, identity) = (endpoint.name.clone(), endpoint.identity);
        self.by_address.insert(ip, name.clone());
        if let Some(id) = endpoint.id {
            self.by_id.insert(id, name.clone());
            // The kernel does not tell the attachment, without which the endpoint could not be made again.
            let attachment = endpoint.attachment.clone();
            let wanted = cx.kernel.wanted().endpoints.get(&id).cloned();
            cx.kernel.set(id, wanted.map(|value| EndpointValue { attachment, ..value }));
        }
        self.by_name.insert(name.clone(), endpoint);
        let now = allocators.identity(cx, &digest, &counting);
        if let Some(now) = now.filter(|now| Some(*now) != identity) {
            self.set_identity(cx, &name, now);
        }
    }

    /// All addresses whose record may differ from the endpoint: those of this node's endpoints, and those of records
    /// without endpoint (the machine was rebooted, and the workloads are gone).
    pub(crate) fn compare_records(&self, cx: &mut Context, fleet: &Fleet) {
        cx.changes.own_endpoints.extend(fleet.records(fleet.node()).map(|(ip, _)| ip));
        cx.changes.own_endpoints.extend(self.addresses());
    }

    /// Takes the addresses of endpoints in a block into use.
    pub(crate) fn restore_addresses(&self, cx: &mut Context, ipam: &mut Ipam, block: IpNetwork) {
        let detaching = self.detaching.values().filter_map(|endpoint| endpoint.address);
        for ip in self.addresses().chain(detaching).filter(|ip| block.contains(*ip)) {
            ipam.restore_address(cx, ip);
            cx.changes.own_endpoints.insert(ip);
        }
    }
}
