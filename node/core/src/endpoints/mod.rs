//! The endpoints of this node, from the call that asks for one to its last trace.
//!
//! waiting for identity -> waiting for address -> attaching -> ready -> detaching -> gone. A call is answered
//! when the kernel has carried it out; the store's record follows on its own (`records.rs`).

mod adopt;
mod outcome;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use datapath_plan::{Attachment, EndpointId, EndpointValue, Generation, Mac};
use identity::{EndpointName, Identity, LabelDigest, Labels};
use kvstore_claims::ClaimError;
use serde::{Deserialize, Serialize};

use crate::{
    CallError, CallErrorKind, CallId, EndpointSpec, EndpointState, SavedEndpoint, limits::ENDPOINT_WAIT,
    node::Node,
};

/// One endpoint of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// It is on its way out: as a backend it takes no new flows.
    pub terminating: bool,
    /// The last plan that knew nothing of its detaching.
    detached_after: Generation,
}

/// All of them. One per node. Invariant: the indexes name exactly what the table holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// How many were taken over at the start whose names are not known yet.
    nameless: usize,
    /// What the former agent kept of this node's endpoints, until the kernel has been read.
    remembered: Vec<SavedEndpoint>,
    /// Those of which something else is to be kept than is.
    pub unsaved: BTreeSet<EndpointId>,
    /// Those remembered that the kernel had not, until they are added again or deleted.
    missing: BTreeSet<EndpointName>,
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

    /// Those that were there before a restart, and are not any more.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &EndpointName> {
        self.missing.iter()
    }

    pub(crate) fn waits_for_address(&self) -> bool {
        !self.waiting_for_address.is_empty()
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// What the next agent should know of an endpoint that is, or is about to be, in the kernel.
    pub(crate) fn saved(&self, id: EndpointId) -> Option<SavedEndpoint> {
        let named = self.by_id.get(&id).and_then(|name| self.by_name.get(name));
        let endpoint = named.or_else(|| self.detaching.get(&id)).filter(|it| it.digest.is_some())?;
        Some(SavedEndpoint {
            id,
            name: endpoint.name.clone(),
            labels: endpoint.labels.clone(),
            attachment: endpoint.attachment.clone(),
            address: endpoint.address?,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            ready: endpoint.state == EndpointState::Ready,
            terminating: endpoint.terminating,
        })
    }

    /// Keeps what the former agent knew until the kernel is read.
    pub(crate) fn remember(&mut self, saved: Vec<SavedEndpoint>) {
        self.remembered = saved;
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
            terminating: false,
            detached_after: Generation::default(),
        };
        self.endpoints.deadlines.insert((deadline, spec.name.clone()));
        self.endpoints.missing.remove(&spec.name);
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
        self.endpoints.unsaved.insert(id);
        self.reconciler.set(id, Some(value));
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
        self.set_identities(digest, identity);
    }

    /// A label set's number means something else now.
    pub(crate) fn identity_lost(&mut self, digest: &LabelDigest) {
        self.set_identities(digest, Identity::INIT);
    }

    fn set_identities(&mut self, digest: &LabelDigest, identity: Identity) {
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

    pub(super) fn set_identity(&mut self, name: &EndpointName, identity: Identity) {
        let Some(endpoint) = self.endpoints.by_name.get_mut(name) else { return };
        endpoint.identity = Some(identity);
        let (Some(id), Some(address)) = (endpoint.id, endpoint.address) else { return };
        let wanted = self.reconciler.wanted().endpoints.get(&id).cloned();
        self.reconciler.set(id, wanted.map(|value| EndpointValue { identity, ..value }));
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
