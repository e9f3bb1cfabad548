//! The endpoints of this node, from the call that asks for one to its last trace.
//!
//! waiting for identity -> waiting for address -> attaching -> ready -> detaching -> gone. A call is answered
//! when the kernel has carried it out; the store's record follows on its own (`records.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use datapath_plan::{Attachment, EndpointId, EndpointValue, Mac, Observed, OpError, OpErrorKind};
use identity::{EndpointName, Identity, LabelDigest, Labels};
use ipnetwork::IpNetwork;
use kvstore_claims::ClaimError;

use crate::{
    CallError, CallErrorKind, CallId, EndpointSpec, EndpointState, EndpointView, Reply,
    limits::ENDPOINT_WAIT, node::Node,
};

/// One endpoint of this node.
#[derive(Debug, Clone)]
pub(crate) struct LocalEndpoint {
    pub name: EndpointName,
    pub labels: Labels,
    /// Of the labels that count. `None`: taken over from a former agent, and no record tells its labels.
    pub digest: Option<LabelDigest>,
    pub attachment: Option<Attachment>,
    wanted_address: Option<IpAddr>,
    pub id: Option<EndpointId>,
    pub address: Option<IpAddr>,
    pub identity: Option<Identity>,
    mac: Mac,
    host_mac: Mac,
    pub state: EndpointState,
    /// Who waits for the next state, and whether it had been there when they asked.
    callers: Vec<(CallId, bool)>,
    /// Until when it may wait.
    deadline: Duration,
    error: Option<String>,
}

/// All of them. One per node. Invariant: the indexes name exactly what the table holds.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    by_name: BTreeMap<EndpointName, LocalEndpoint>,
    by_id: BTreeMap<EndpointId, EndpointName>,
    by_address: BTreeMap<IpAddr, EndpointName>,
    waiting_for_identity: BTreeMap<LabelDigest, BTreeSet<EndpointName>>,
    waiting_for_address: BTreeSet<EndpointName>,
    deadlines: BTreeSet<(Duration, EndpointName)>,
    /// Those being detached: their names are free for others.
    detaching: BTreeMap<EndpointId, LocalEndpoint>,
    /// Devices of endpoints that were there at the start, in whatever state.
    devices: BTreeSet<EndpointId>,
    last_id: u32,
    /// How many were taken over at the start.
    adopted: usize,
}

impl Endpoints {
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn get(&self, name: &EndpointName) -> Option<&LocalEndpoint> {
        self.by_name.get(name)
    }

    /// The endpoint that has an address and is, or is about to be, in the kernel.
    pub(crate) fn at(&self, ip: IpAddr) -> Option<&LocalEndpoint> {
        self.by_name.get(self.by_address.get(&ip)?)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_address.keys().copied()
    }

    pub(crate) fn waits_for_address(&self) -> bool {
        !self.waiting_for_address.is_empty()
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn next_id(&mut self) -> EndpointId {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let id = EndpointId(self.last_id);
            let taken = self.by_id.contains_key(&id)
                || self.detaching.contains_key(&id)
                || self.devices.contains(&id);
            if !taken {
                return id;
            }
        }
    }
}

impl Node {
    /// Whether the kernel has been read, and the names of what it has are known.
    pub(crate) fn knows_its_endpoints(&self) -> bool {
        let none_adopted = || self.endpoints.adopted == 0;
        self.audit.observed && (self.audit.trusted.is_some() || none_adopted())
    }

    pub(crate) fn add_endpoint(&mut self, call: CallId, spec: EndpointSpec) {
        if let Some(existing) = self.endpoints.by_name.get_mut(&spec.name) {
            if let Err(text) = same_endpoint(existing, &spec) {
                return self.refuse(call, CallErrorKind::Conflict, text);
            }
            existing.callers.push((call, true));
            if existing.state == EndpointState::Ready {
                let name = spec.name.clone();
                self.answer_callers(&name);
            }
            return;
        }
        if let Err((kind, text)) = self.admit(&spec) {
            return self.refuse(call, kind, text);
        }
        let counting = self.counting_labels(&spec.labels);
        let digest = counting.digest();
        let address = match spec.address.map(|ip| self.take_address(Some(ip))).transpose() {
            Ok(address) => address.flatten(),
            Err((kind, text)) => return self.refuse(call, kind, text),
        };
        let identity = self.use_identity(&digest, &counting);
        let deadline = self.now.monotonic + ENDPOINT_WAIT;
        let endpoint = LocalEndpoint {
            name: spec.name.clone(),
            labels: spec.labels,
            digest: Some(digest.clone()),
            attachment: Some(spec.attachment),
            wanted_address: spec.address,
            id: None,
            address,
            identity,
            mac: self.draw_mac(),
            host_mac: self.draw_mac(),
            state: EndpointState::WaitingForIdentity,
            callers: vec![(call, false)],
            deadline,
            error: None,
        };
        self.endpoints.deadlines.insert((deadline, spec.name.clone()));
        self.endpoints.by_name.insert(spec.name.clone(), endpoint);
        if identity.is_none() {
            self.endpoints.waiting_for_identity.entry(digest).or_default().insert(spec.name);
        } else {
            self.advance(&spec.name);
        }
    }

    /// Whether there is anything against a new endpoint before it costs anything.
    fn admit(&self, spec: &EndpointSpec) -> Result<(), (CallErrorKind, String)> {
        if let Some(reason) = &self.membership.halted {
            let text = format!("this node takes no endpoints: {reason}");
            return Err((CallErrorKind::Unavailable, text));
        }
        let detaching = self.endpoints.detaching.values();
        let everyone = self.endpoints.by_name.values().chain(detaching);
        if let Some(other) =
            everyone.into_iter().find(|other| other.attachment.as_ref() == Some(&spec.attachment))
        {
            let Attachment::Netns { path, interface } = &spec.attachment;
            let text = format!(
                "interface {interface} of {} belongs to endpoint {}; delete that one first, or name another interface",
                path.display(),
                other.name
            );
            return Err((CallErrorKind::Conflict, text));
        }
        self.reconciler.check_endpoint_room().map_err(|error| {
            (CallErrorKind::Exhausted, format!("{error}: delete endpoints, or use another node"))
        })
    }

    fn draw_mac(&mut self) -> Mac {
        let [_, _, mut bytes @ ..] = self.rng.u64(..).to_be_bytes();
        // Locally administered, unicast (IEEE 802 section 8.4).
        bytes[0] = bytes[0] & 0xfe | 0x02;
        Mac(bytes)
    }

    /// Takes an endpoint with an identity one state further.
    fn advance(&mut self, name: &EndpointName) {
        let Some(endpoint) = self.endpoints.by_name.get(name) else { return };
        let (Some(identity), wanted) = (endpoint.identity, endpoint.wanted_address) else { return };
        let address = match endpoint.address {
            Some(address) => address,
            None => match self.take_address(wanted) {
                Ok(Some(address)) => address,
                Ok(None) => {
                    self.set_state(name, EndpointState::WaitingForAddress);
                    self.endpoints.waiting_for_address.insert(name.clone());
                    return;
                }
                Err((kind, text)) => return self.give_up(name, kind, &text),
            },
        };
        let id = self.endpoints.next_id();
        let Some(endpoint) = self.endpoints.by_name.get_mut(name) else { return };
        endpoint.id = Some(id);
        endpoint.address = Some(address);
        endpoint.state = EndpointState::Attaching;
        self.endpoints.deadlines.remove(&(endpoint.deadline, name.clone()));
        let value = EndpointValue {
            address,
            identity,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            attachment: endpoint.attachment.clone(),
        };
        self.endpoints.by_id.insert(id, name.clone());
        self.endpoints.by_address.insert(address, name.clone());
        self.reconciler.set_endpoint(id, Some(value));
        self.desired.addresses.insert(address);
    }

    fn set_state(&mut self, name: &EndpointName, state: EndpointState) {
        if let Some(endpoint) = self.endpoints.by_name.get_mut(name) {
            endpoint.state = state;
        }
    }

    /// A label set has a number now, or another one than before.
    pub(crate) fn identity_granted(&mut self, digest: &LabelDigest, identity: Identity) {
        for name in self.endpoints.waiting_for_identity.remove(digest).unwrap_or_default() {
            if let Some(endpoint) = self.endpoints.by_name.get_mut(&name) {
                endpoint.identity = Some(identity);
            }
            self.advance(&name);
        }
        let stale: Vec<EndpointName> = (self.endpoints.by_name.values())
            .filter(|endpoint| {
                endpoint.digest.as_ref() == Some(digest) && endpoint.identity != Some(identity)
            })
            .map(|endpoint| endpoint.name.clone())
            .collect();
        for name in stale {
            self.set_identity(&name, identity);
        }
    }

    fn set_identity(&mut self, name: &EndpointName, identity: Identity) {
        let Some(endpoint) = self.endpoints.by_name.get_mut(name) else { return };
        endpoint.identity = Some(identity);
        let (Some(id), Some(address)) = (endpoint.id, endpoint.address) else { return };
        let wanted = self.reconciler.wanted().endpoints.get(&id).cloned();
        self.reconciler.set_endpoint(id, wanted.map(|value| EndpointValue { identity, ..value }));
        self.desired.addresses.insert(address);
        self.endpoint_changed(address);
    }

    pub(crate) fn identity_refused(&mut self, digest: &LabelDigest, error: &ClaimError) {
        if matches!(error, ClaimError::NotRegistered { .. }) {
            return;
        }
        let kind = match error {
            ClaimError::IdentitiesExhausted { .. } => CallErrorKind::Exhausted,
            ClaimError::Contradiction { .. } | ClaimError::BadRecord { .. } => CallErrorKind::Conflict,
            _ => CallErrorKind::Unavailable,
        };
        for name in self.endpoints.waiting_for_identity.get(digest).cloned().unwrap_or_default() {
            self.give_up(&name, kind, &error.to_string());
        }
    }

    /// There is a further block: those that waited for it go on.
    pub(crate) fn give_addresses(&mut self) {
        for name in std::mem::take(&mut self.endpoints.waiting_for_address) {
            self.advance(&name);
        }
    }

    /// There is no further block.
    pub(crate) fn refuse_addresses(&mut self, text: &str) {
        for name in std::mem::take(&mut self.endpoints.waiting_for_address) {
            self.give_up(&name, CallErrorKind::Exhausted, text);
        }
    }

    /// Ends the waiting of those who have waited too long.
    pub(crate) fn expire_endpoints(&mut self) {
        let now = self.now.monotonic;
        while let Some((_, name)) = self.endpoints.deadlines.first().filter(|(at, _)| *at <= now).cloned() {
            self.endpoints.deadlines.pop_first();
            let waits_for = match self.endpoints.by_name.get(&name).map(|endpoint| endpoint.state) {
                Some(EndpointState::WaitingForIdentity) => {
                    "the store has not given a number for its labels; label sets in use on this node still work"
                }
                Some(EndpointState::WaitingForAddress) => {
                    "the store has not given this node a pod CIDR with a free address"
                }
                _ => continue,
            };
            let cause = self.store.suspect.as_ref().or(self.store.lost.as_ref());
            let cause = cause.map(|cause| format!(" (store: {cause})")).unwrap_or_default();
            let text = format!(
                "endpoint {name} not added in {} s: {waits_for}{cause}; try again",
                ENDPOINT_WAIT.as_secs()
            );
            self.give_up(&name, CallErrorKind::Unavailable, &text);
        }
    }

    /// Ends an endpoint that is not in the kernel: everything it had is given back.
    fn give_up(&mut self, name: &EndpointName, kind: CallErrorKind, text: &str) {
        let Some(endpoint) = self.endpoints.by_name.remove(name) else { return };
        self.endpoints.deadlines.remove(&(endpoint.deadline, name.clone()));
        self.endpoints.waiting_for_address.remove(name);
        if let Some(digest) = &endpoint.digest
            && let Some(waiting) = self.endpoints.waiting_for_identity.get_mut(digest)
        {
            waiting.remove(name);
            if waiting.is_empty() {
                self.endpoints.waiting_for_identity.remove(digest);
            }
        }
        self.give_back(&endpoint);
        for (call, _) in endpoint.callers {
            self.refuse(call, kind, text.to_owned());
        }
    }

    fn give_back(&mut self, endpoint: &LocalEndpoint) {
        if let Some(address) = endpoint.address {
            self.ipam.pool.release(address, self.now.monotonic);
        }
        if let Some(digest) = &endpoint.digest {
            self.drop_identity(digest);
        }
    }

    pub(crate) fn delete_endpoint(&mut self, call: CallId, name: &EndpointName) {
        match self.endpoints.by_name.get(name).map(|endpoint| endpoint.id) {
            None => match self.endpoints.detaching.values_mut().find(|endpoint| endpoint.name == *name) {
                Some(detaching) => detaching.callers.push((call, true)),
                None => self.reply(call, Ok(Reply::EndpointDeleted { existed: false })),
            },
            Some(None) => {
                let text = format!("endpoint {name} was deleted before it was attached");
                self.give_up(name, CallErrorKind::Conflict, &text);
                self.reply(call, Ok(Reply::EndpointDeleted { existed: true }));
            }
            Some(Some(_)) => {
                let text = format!("endpoint {name} was deleted while it was attached");
                self.detach(name, CallErrorKind::Conflict, &text);
                let detaching = self.endpoints.detaching.values_mut().find(|endpoint| endpoint.name == *name);
                detaching.into_iter().for_each(|endpoint| endpoint.callers.push((call, true)));
            }
        }
    }

    /// Takes an endpoint out of the kernel. Who waits for it to be attached gets the error.
    fn detach(&mut self, name: &EndpointName, kind: CallErrorKind, text: &str) {
        let Some(mut endpoint) = self.endpoints.by_name.remove(name) else { return };
        let (Some(id), Some(address)) = (endpoint.id, endpoint.address) else { return };
        self.endpoints.by_id.remove(&id);
        self.endpoints.by_address.remove(&address);
        for (call, _) in std::mem::take(&mut endpoint.callers) {
            self.refuse(call, kind, text.to_owned());
        }
        endpoint.state = EndpointState::Detaching;
        self.endpoints.detaching.insert(id, endpoint);
        self.reconciler.set_endpoint(id, None);
        self.desired.addresses.insert(address);
        self.endpoint_changed(address);
    }

    /// The kernel has carried out a step on an endpoint.
    pub(crate) fn endpoint_done(&mut self, id: EndpointId) {
        let there = self.reconciler.applied().endpoints.contains_key(&id);
        if let Some(name) = self.endpoints.by_id.get(&id).cloned() {
            if there && let Some(endpoint) = self.endpoints.by_name.get_mut(&name) {
                endpoint.error = None;
                if endpoint.state == EndpointState::Attaching {
                    endpoint.state = EndpointState::Ready;
                    self.counters.endpoints_added += 1;
                    if let Some(address) = endpoint.address {
                        self.endpoint_changed(address);
                    }
                }
                self.answer_callers(&name);
            }
        } else if !there {
            self.endpoints.devices.remove(&id);
            if let Some(endpoint) = self.endpoints.detaching.remove(&id) {
                self.give_back(&endpoint);
                self.counters.endpoints_deleted += 1;
                for (call, existed) in endpoint.callers {
                    self.reply(call, Ok(Reply::EndpointDeleted { existed }));
                }
            }
        }
    }

    /// The kernel could not carry out a step on an endpoint.
    pub(crate) fn endpoint_failed(&mut self, id: EndpointId, error: &OpError) {
        if let Some(name) = self.endpoints.by_id.get(&id).cloned() {
            let attaching =
                self.endpoints.by_name.get(&name).is_some_and(|e| e.state == EndpointState::Attaching);
            if attaching {
                let kind = match error.kind {
                    OpErrorKind::NamespaceGone => CallErrorKind::Invalid,
                    OpErrorKind::Capacity => CallErrorKind::Exhausted,
                    OpErrorKind::Conflict => CallErrorKind::Conflict,
                    OpErrorKind::Transient => CallErrorKind::Unavailable,
                };
                self.detach(&name, kind, &format!("endpoint {name} not attached: {error}"));
            } else if let Some(endpoint) = self.endpoints.by_name.get_mut(&name) {
                // One that had been attached: the reconciler tries again.
                endpoint.error = Some(error.to_string());
            }
        } else if let Some(endpoint) = self.endpoints.detaching.get_mut(&id) {
            endpoint.error = Some(error.to_string());
            let text = format!("endpoint {} not deleted yet: {error}; it is tried again", endpoint.name);
            for (call, _) in std::mem::take(&mut endpoint.callers) {
                self.refuse(call, CallErrorKind::Unavailable, text.clone());
            }
        }
    }

    fn answer_callers(&mut self, name: &EndpointName) {
        let Some(endpoint) = self.endpoints.by_name.get_mut(name) else { return };
        let (Some(id), Some(address), Some(identity)) = (endpoint.id, endpoint.address, endpoint.identity)
        else {
            return;
        };
        for (call, existed) in std::mem::take(&mut endpoint.callers) {
            let reply = Reply::EndpointAdded { name: name.clone(), id, address, identity, existed };
            self.reply(call, Ok(reply));
        }
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
            error: endpoint.error.clone(),
        }
    }
}

/// Whether a call asks for what is there already.
fn same_endpoint(existing: &LocalEndpoint, spec: &EndpointSpec) -> Result<(), String> {
    let differs = if existing.labels != spec.labels {
        format!("labels {{{}}}", existing.labels)
    } else if existing.attachment.as_ref().is_some_and(|attachment| *attachment != spec.attachment) {
        "another network namespace or interface".to_owned()
    } else if let (Some(wanted), Some(has)) = (spec.address, existing.address.or(existing.wanted_address))
        && wanted != has
    {
        format!("address {has}")
    } else {
        return Ok(());
    };
    Err(format!("endpoint {} exists with {differs}; delete it first, or choose another name", spec.name))
}

impl CallError {
    pub(crate) fn new(kind: CallErrorKind, text: String) -> Self {
        Self { kind, text }
    }
}
