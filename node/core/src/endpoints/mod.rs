//! The endpoints of this node, from the call that adds one to its last trace.
//!
//! waiting for identity -> waiting for address -> attaching -> ready -> detaching -> gone. A call is answered when the
//! kernel has carried it out; the store's record follows on its own (`records`).

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
    CallErrorKind, CallId, EndpointSpec, EndpointState, SavedEndpoint,
    context::{Context, Startup},
    fleet::Fleet,
    identities::{Identities, IdentityChange},
    ipam::Ipam,
    limits::ENDPOINT_WAIT,
    peers::Peers,
};

/// One endpoint of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LocalEndpoint {
    pub name: EndpointName,
    pub labels: Labels,
    /// Of the labels that determine the identity. `None`: adopted from a former agent, and no record tells its labels.
    pub digest: Option<LabelDigest>,
    attachment: Option<Attachment>,
    wanted_address: Option<IpAddr>,
    id: Option<EndpointId>,
    address: Option<IpAddr>,
    pub identity: Option<Identity>,
    mac: Mac,
    host_mac: Mac,
    pub state: EndpointState,
    /// Callers that wait for the next state, and whether the endpoint existed when they called.
    callers: Vec<(CallId, bool)>,
    /// Until when it may wait for identity and address.
    deadline: Duration,
    error: Option<String>,
    /// It is drained: as a backend it takes no new flows.
    pub terminating: bool,
    /// The last plan that was made before it was detached.
    detached_after: Generation,
}

/// All endpoints. One per node. Invariant: the indexes name exactly what the table holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    by_name: BTreeMap<EndpointName, LocalEndpoint>,
    by_id: BTreeMap<EndpointId, EndpointName>,
    by_address: BTreeMap<IpAddr, EndpointName>,
    waiting_for_identity: BTreeMap<LabelDigest, BTreeSet<EndpointName>>,
    waiting_for_address: BTreeSet<EndpointName>,
    deadlines: BTreeSet<(Duration, EndpointName)>,
    /// Endpoints being detached: their names are free for others.
    detaching: BTreeMap<EndpointId, LocalEndpoint>,
    /// Devices of endpoints that existed at the start, in whatever state.
    devices: BTreeSet<EndpointId>,
    last_id: u32,
    /// How many were adopted at the start and have no known name yet.
    nameless: usize,
    /// What the former agent saved of this node's endpoints, until the kernel has been read.
    saved: Vec<SavedEndpoint>,
    /// Saved endpoints that the kernel did not have, until they are added again or deleted.
    missing: BTreeSet<EndpointName>,
}

/// Where an endpoint's address and identity come from, and where they are returned.
pub(crate) struct Allocators<'a> {
    pub fleet: &'a Fleet,
    pub peers: &'a Peers,
    pub ipam: &'a mut Ipam,
    pub identities: &'a mut Identities,
}

impl Allocators<'_> {
    fn identity(&mut self, cx: &Context, digest: &LabelDigest, labels: &Labels) -> Option<Identity> {
        self.identities.acquire(cx, self.fleet, self.peers, digest, labels)
    }

    fn release(&mut self, now: Duration, endpoint: &LocalEndpoint) {
        if let Some(address) = endpoint.address {
            self.ipam.release_address(address, now);
        }
        if let Some(digest) = &endpoint.digest {
            self.identities.release(digest, now);
        }
    }
}

impl Endpoints {
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The endpoint that has an address and is, or is about to be, in the kernel.
    pub(crate) fn at(&self, ip: IpAddr) -> Option<&LocalEndpoint> {
        self.by_name.get(self.by_address.get(&ip)?)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_address.keys().copied()
    }

    /// Whether the kernel has been read, and the names of the endpoints in it are known.
    pub(crate) fn are_known(&self, startup: Startup) -> bool {
        startup.kernel_read && (startup.is_over() || self.nameless == 0)
    }

    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        self.missing.iter().map(|name| {
            format!("endpoint {name} is not in the kernel since the restart: add it again, or delete it")
        })
    }

    pub(crate) fn wait_for_address(&self) -> bool {
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

    /// Adds an endpoint for a caller; the same call again is answered like the first.
    pub(crate) fn add(
        &mut self,
        cx: &mut Context,
        allocators: &mut Allocators<'_>,
        call: CallId,
        spec: EndpointSpec,
    ) {
        if let Some(existing) = self.by_name.get_mut(&spec.name) {
            if let Err(text) = same_endpoint(existing, &spec) {
                return cx.refuse(call, CallErrorKind::Conflict, text);
            }
            existing.callers.push((call, true));
            if existing.state == EndpointState::Ready {
                self.answer_callers(cx, &spec.name);
            }
            return;
        }
        if let Err((kind, text)) = self.admit(cx, allocators.fleet, &spec) {
            return cx.refuse(call, kind, text);
        }
        let counting = cx.identity_labels(&spec.labels);
        let digest = counting.digest();
        let now = cx.now.monotonic;
        let address = match spec.address.map(|ip| allocators.ipam.take_address(now, Some(ip))).transpose() {
            Ok(address) => address.flatten(),
            Err((kind, text)) => return cx.refuse(call, kind, text),
        };
        let identity = allocators.identity(cx, &digest, &counting);
        let deadline = now + ENDPOINT_WAIT;
        let endpoint = LocalEndpoint {
            name: spec.name.clone(),
            labels: spec.labels,
            digest: Some(digest.clone()),
            attachment: Some(spec.attachment),
            wanted_address: spec.address,
            id: None,
            address,
            identity,
            mac: draw_mac(cx),
            host_mac: draw_mac(cx),
            state: EndpointState::WaitingForIdentity,
            callers: vec![(call, false)],
            deadline,
            error: None,
            terminating: false,
            detached_after: Generation::default(),
        };
        self.deadlines.insert((deadline, spec.name.clone()));
        self.missing.remove(&spec.name);
        self.by_name.insert(spec.name.clone(), endpoint);
        if identity.is_none() {
            self.waiting_for_identity.entry(digest).or_default().insert(spec.name);
        } else {
            self.advance(cx, allocators, &spec.name);
        }
    }

    /// Whether there is any objection to a new endpoint, before anything is allocated for it.
    fn admit(&self, cx: &Context, fleet: &Fleet, spec: &EndpointSpec) -> Result<(), (CallErrorKind, String)> {
        if let Some(reason) = fleet.halted() {
            let text = format!("this node takes no endpoints: {reason}");
            return Err((CallErrorKind::Unavailable, text));
        }
        let mut all = self.by_name.values().chain(self.detaching.values());
        if let Some(other) = all.find(|other| other.attachment.as_ref() == Some(&spec.attachment)) {
            let Attachment::Netns { path, interface } = &spec.attachment;
            let text = format!(
                "interface {interface} of {} belongs to endpoint {}; delete that one first, or name another interface",
                path.display(),
                other.name
            );
            return Err((CallErrorKind::Conflict, text));
        }
        cx.kernel.check_endpoint_room().map_err(|error| {
            (CallErrorKind::Exhausted, format!("{error}: delete endpoints, or use another node"))
        })
    }

    /// Takes an endpoint with an identity one state further.
    fn advance(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>, name: &EndpointName) {
        let Some(endpoint) = self.by_name.get_mut(name) else { return };
        let (Some(identity), wanted) = (endpoint.identity, endpoint.wanted_address) else { return };
        let address = match endpoint.address {
            Some(address) => address,
            None => match allocators.ipam.take_address(cx.now.monotonic, wanted) {
                Ok(Some(address)) => address,
                Ok(None) => {
                    endpoint.state = EndpointState::WaitingForAddress;
                    self.waiting_for_address.insert(name.clone());
                    return;
                }
                Err((kind, text)) => return self.give_up(cx, allocators, name, kind, &text),
            },
        };
        let id = self.next_id();
        let Some(endpoint) = self.by_name.get_mut(name) else { return };
        endpoint.id = Some(id);
        endpoint.address = Some(address);
        endpoint.state = EndpointState::Attaching;
        self.deadlines.remove(&(endpoint.deadline, name.clone()));
        let value = EndpointValue {
            address,
            identity,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
            attachment: endpoint.attachment.clone(),
        };
        self.by_id.insert(id, name.clone());
        self.by_address.insert(address, name.clone());
        cx.changes.endpoint_files.insert(id);
        cx.changes.addresses.insert(address);
        cx.kernel.set(id, Some(value));
    }

    /// A label set's identity changed.
    pub(crate) fn on_identity(
        &mut self,
        cx: &mut Context,
        allocators: &mut Allocators<'_>,
        change: IdentityChange,
    ) {
        match change {
            IdentityChange::Granted(digest, identity) => {
                for name in self.waiting_for_identity.remove(&digest).unwrap_or_default() {
                    if let Some(endpoint) = self.by_name.get_mut(&name) {
                        endpoint.identity = Some(identity);
                    }
                    self.advance(cx, allocators, &name);
                }
                self.set_identities(cx, &digest, identity);
            }
            IdentityChange::Lost(digest) => self.set_identities(cx, &digest, Identity::INIT),
            IdentityChange::Refused(digest, error) => {
                let kind = match error {
                    ClaimError::IdentitiesExhausted { .. } => CallErrorKind::Exhausted,
                    ClaimError::Contradiction { .. } | ClaimError::BadRecord { .. } => {
                        CallErrorKind::Conflict
                    }
                    _ => CallErrorKind::Unavailable,
                };
                for name in self.waiting_for_identity.get(&digest).cloned().unwrap_or_default() {
                    self.give_up(cx, allocators, &name, kind, &error.to_string());
                }
            }
        }
    }

    fn set_identities(&mut self, cx: &mut Context, digest: &LabelDigest, identity: Identity) {
        let stale = self.by_name.values().filter(|endpoint| {
            endpoint.digest.as_ref() == Some(digest) && endpoint.identity != Some(identity)
        });
        for name in stale.map(|endpoint| endpoint.name.clone()).collect::<Vec<_>>() {
            self.set_identity(cx, &name, identity);
        }
    }

    fn set_identity(&mut self, cx: &mut Context, name: &EndpointName, identity: Identity) {
        let Some(endpoint) = self.by_name.get_mut(name) else { return };
        endpoint.identity = Some(identity);
        let (Some(id), Some(address)) = (endpoint.id, endpoint.address) else { return };
        let wanted = cx.kernel.wanted().endpoints.get(&id).cloned();
        cx.kernel.set(id, wanted.map(|value| EndpointValue { identity, ..value }));
        cx.changes.addresses.insert(address);
        cx.changes.own_endpoints.insert(address);
    }

    /// There is a further block: endpoints that waited for an address go on.
    pub(crate) fn assign_addresses(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>) {
        for name in std::mem::take(&mut self.waiting_for_address) {
            self.advance(cx, allocators, &name);
        }
    }

    /// There is no further block.
    pub(crate) fn refuse_addresses(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>, text: &str) {
        for name in std::mem::take(&mut self.waiting_for_address) {
            self.give_up(cx, allocators, &name, CallErrorKind::Exhausted, text);
        }
    }
}

fn draw_mac(cx: &mut Context) -> Mac {
    let [_, _, mut bytes @ ..] = cx.rng.u64(..).to_be_bytes();
    // Locally administered, unicast (IEEE 802 section 8.4).
    bytes[0] = bytes[0] & 0xfe | 0x02;
    Mac(bytes)
}

/// Whether a call asks for the endpoint that exists.
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
