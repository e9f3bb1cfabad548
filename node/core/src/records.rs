//! What the store and gossip say of this node's endpoints: records that follow the kernel, and the changes
//! that the store has not confirmed yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use datapath_plan::Generation;
use kvstore_claims::{ClaimError, EndpointChange, EndpointResult, EndpointWrites};
use kvstore_schema::{
    Revision,
    record::{ClaimEpoch, EndpointRecord},
};
use node_facts::{CidrFact, NodeFacts, NodeHealth, PendingEndpoint, PendingOp};
use serde::{Deserialize, Serialize};

use crate::{
    Command, EndpointState,
    limits::{MAX_PENDING, MAX_TOLD_AGAIN, REFUSED_RETRY, WRITES_PER_ROUND},
    membership::Phase,
    node::Node,
    tasks::Task,
};

/// A record with the revision that it has, or, when it was deleted, had.
type Known = (Revision, Option<Arc<EndpointRecord>>);

/// What is to be recorded. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Records {
    /// Addresses whose record is not as it should be.
    dirty: BTreeSet<IpAddr>,
    /// What is being written now; one round at a time, so that writes of one address keep their order.
    round: Option<BTreeMap<IpAddr, Known>>,
    /// What was written and the view does not show yet.
    written: BTreeMap<IpAddr, Known>,
    /// Changes that the view does not show yet, for gossip.
    pending: BTreeMap<IpAddr, PendingEndpoint>,
    sequence: u64,
    /// What the store has lately confirmed to be gone: unlike what is there, no record tells of it.
    removed: BTreeMap<IpAddr, PendingEndpoint>,
    /// What the store has confirmed and is told again, for peers that are cut off from it.
    again: Vec<PendingEndpoint>,
    /// Rises with every change of `pending` and `again`.
    version: u64,
    paused_until: Duration,
    /// What gossip was told last, without the changes, and the version of those.
    published: Option<(NodeFacts, u64)>,
}

impl Records {
    pub(crate) fn queued(&self) -> usize {
        self.dirty.len() + self.round.as_ref().map_or(0, BTreeMap::len)
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        (!self.dirty.is_empty() && self.round.is_none()).then_some(self.paused_until)
    }
}

impl Node {
    /// The record of an endpoint of this node as the store has it, to the best of our knowledge.
    fn known_record(&self, ip: IpAddr) -> Option<(Revision, Arc<EndpointRecord>)> {
        let seen = self.view.endpoints().get(&self.config.node).and_then(|records| records.get(&ip));
        let seen = seen.map(|entry| (entry.modified, entry.record.clone()));
        match self.records.written.get(&ip) {
            Some((at, Some(record))) if self.view.revision() < *at => Some((*at, record.clone())),
            Some((deleted, None)) => seen.filter(|(modified, _)| modified > deleted),
            Some((_, Some(_))) | None => seen,
        }
    }

    /// The record that an address should have. The error: it is not for us to say now.
    fn wanted_endpoint_record(&self, ip: IpAddr) -> Result<Option<EndpointRecord>, ()> {
        let Some(endpoint) = self.endpoints.at(ip) else { return Ok(None) };
        match (endpoint.state, &endpoint.digest, endpoint.identity) {
            (EndpointState::Ready, Some(digest), Some(identity)) if identity.is_fleet() => {
                Ok(Some(EndpointRecord {
                    name: endpoint.name.clone(),
                    identity,
                    labels_digest: digest.clone(),
                    labels: endpoint.labels.clone(),
                    terminating: endpoint.terminating,
                    unknown: Default::default(),
                }))
            }
            _ => Err(()),
        }
    }

    /// Whether the store has the right record.
    pub(crate) fn is_recorded(&self, ip: IpAddr) -> bool {
        match (self.wanted_endpoint_record(ip), self.known_record(ip)) {
            (Ok(Some(wanted)), Some((_, known))) => same(&wanted, &known),
            _ => false,
        }
    }

    /// The endpoint of an address, or its record, may have changed: finds out what is left to be done.
    pub(crate) fn endpoint_changed(&mut self, ip: IpAddr) {
        // Before the kernel and the store have been seen once, what is missing proves nothing.
        if !self.knows_its_records() {
            return;
        }
        let Ok(wanted) = self.wanted_endpoint_record(ip) else { return };
        let known = self.known_record(ip);
        let settled = match (&wanted, &known) {
            (Some(wanted), Some((_, known))) => same(wanted, known),
            (wanted, known) => wanted.is_none() && known.is_none(),
        };
        if settled {
            self.records.dirty.remove(&ip);
            // Written is not enough: what leaves gossip is in the store at the revision that is told.
            if !self.records.written.contains_key(&ip) {
                self.confirmed(ip);
            }
            return;
        }
        self.records.dirty.insert(ip);
        let (op, record) = match (wanted, known) {
            (Some(wanted), _) => (PendingOp::Added, wanted),
            (None, Some((_, known))) => (PendingOp::Removed, known.as_ref().clone()),
            (None, None) => return self.withdraw(ip),
        };
        let told = self.records.pending.get(&ip);
        let same = |told: &PendingEndpoint| {
            (told.op, told.identity, &told.name, told.terminating)
                == (op, record.identity, &record.name, record.terminating)
        };
        if told.is_some_and(same) {
            return;
        }
        self.records.sequence += 1;
        self.records.version += 1;
        let change = PendingEndpoint {
            ip,
            identity: record.identity,
            labels_digest: record.labels_digest,
            labels: record.labels,
            name: record.name,
            terminating: record.terminating,
            op,
            sequence: self.records.sequence,
            recorded: None,
        };
        self.records.removed.remove(&ip);
        self.records.pending.insert(ip, change);
    }

    /// The store has a change of this node's.
    fn confirmed(&mut self, ip: IpAddr) {
        let told = self.records.pending.get(&ip).filter(|told| told.op == PendingOp::Removed);
        if let Some(told) = told.cloned() {
            let recorded = Some(self.view.revision().0);
            self.records.removed.insert(ip, PendingEndpoint { sequence: 0, recorded, ..told });
            let oldest = self.records.removed.iter().min_by_key(|(_, change)| change.recorded);
            let oldest = oldest.map(|(ip, _)| *ip);
            if self.records.removed.len() > MAX_TOLD_AGAIN
                && let Some(oldest) = oldest
            {
                self.records.removed.remove(&oldest);
            }
        }
        self.withdraw(ip);
        self.tell_again();
    }

    /// Finds out what the store has confirmed and the one that is cut off for longest cannot have seen. The newest of
    /// it: what comes off the end was told while it was new. O(this node's endpoints) while somebody is cut off.
    pub(crate) fn tell_again(&mut self) {
        let again = self.peers.cut_off_since().map(|since| self.confirmed_since(since)).unwrap_or_default();
        if again != self.records.again {
            self.records.again = again;
            self.records.version += 1;
        }
    }

    fn confirmed_since(&self, since: ClaimEpoch) -> Vec<PendingEndpoint> {
        let life = self.view.life().number;
        let unseen = |recorded: i64| ClaimEpoch { life, revision: Revision(recorded) } > since;
        let records = self.view.endpoints().get(&self.config.node).into_iter().flatten();
        let there = records.filter(|(_, entry)| unseen(entry.modified.0)).map(|(ip, entry)| {
            let EndpointRecord { name, identity, labels_digest, labels, terminating, .. } =
                entry.record.as_ref().clone();
            PendingEndpoint {
                ip: *ip,
                identity,
                labels_digest,
                labels,
                name,
                terminating,
                op: PendingOp::Added,
                sequence: 0,
                recorded: Some(entry.modified.0),
            }
        });
        let gone =
            self.records.removed.values().filter(|change| change.recorded.is_some_and(unseen)).cloned();
        // What has changed since is told as it is now.
        let settled = |change: &PendingEndpoint| !self.records.pending.contains_key(&change.ip);
        let mut again: Vec<PendingEndpoint> = there.chain(gone).filter(settled).collect();
        again.sort_by_key(|change| (std::cmp::Reverse(change.recorded), change.ip));
        again.truncate(MAX_TOLD_AGAIN);
        again
    }

    /// Takes a change out of gossip: the store has confirmed it, or it never came to be.
    fn withdraw(&mut self, ip: IpAddr) {
        if self.records.pending.remove(&ip).is_some() {
            self.records.version += 1;
        }
    }

    pub(crate) fn on_own_endpoint_record(&mut self, ip: IpAddr) {
        let seen = self.view.endpoints().get(&self.config.node).and_then(|records| records.get(&ip));
        let caught_up = match self.records.written.get(&ip) {
            Some((at, Some(_))) => self.view.revision() >= *at,
            Some((deleted, None)) => seen.is_none_or(|entry| entry.modified > *deleted),
            None => false,
        };
        if caught_up {
            self.records.written.remove(&ip);
        }
        if self.audit.trusted.is_some() {
            self.name_by_record(ip);
        }
        self.endpoint_changed(ip);
        if self.peers.cut_off_since().is_some() {
            self.tell_again();
        }
    }

    /// Whether the kernel, and what the store had of this node's endpoints, have been seen once.
    fn knows_its_records(&self) -> bool {
        self.audit.trusted.is_some() || (self.snapshots.restored && self.audit.observed)
    }

    /// Nothing of what was written is in the store any more, as far as is known.
    pub(crate) fn write_again(&mut self) {
        self.records.round = None;
        self.records.written.clear();
        self.records.removed.clear();
        self.records.paused_until = Duration::ZERO;
    }

    /// Writes what is to be written, one round at a time.
    pub(crate) fn pursue_records(&mut self) {
        let due = self.now.monotonic >= self.records.paused_until;
        if self.records.round.is_some()
            || self.records.dirty.is_empty()
            || self.membership.phase != Phase::Joined
            || !due
        {
            return;
        }
        let mut round = BTreeMap::new();
        let mut changes = Vec::new();
        for ip in std::mem::take(&mut self.records.dirty) {
            if round.len() == WRITES_PER_ROUND {
                self.records.dirty.insert(ip);
                continue;
            }
            match (self.wanted_endpoint_record(ip), self.known_record(ip)) {
                (Ok(Some(mut record)), known) => {
                    // Without a block there is no fence: it is tried again when the block is held.
                    let Some(block) = self.ipam.block_of(ip) else { continue };
                    let (cidr, epoch) = (block.cidr, block.epoch);
                    record.unknown = known.map(|(_, known)| known.unknown.clone()).unwrap_or_default();
                    round.insert(ip, (Revision::default(), Some(Arc::new(record.clone()))));
                    changes.push(EndpointChange::Put { ip, record, cidr, epoch });
                }
                (Ok(None), Some((revision, known))) => {
                    round.insert(ip, (revision, None));
                    changes.push(EndpointChange::Delete { ip, name: known.name.clone(), revision });
                }
                (Ok(None), None) | (Err(()), _) => {}
            }
        }
        match EndpointWrites::start(&self.view, self.config.node.clone(), changes) {
            Ok(Some((machine, request))) => {
                self.records.round = Some(round);
                self.ask(request, Task::Write(machine));
            }
            Ok(None) => {}
            Err(error) => self.error(error.to_string()),
        }
    }

    pub(crate) fn on_written(&mut self, end: Result<Vec<(IpAddr, EndpointResult)>, ClaimError>) {
        let round = self.records.round.take().unwrap_or_default();
        match end {
            Ok(results) => {
                for (ip, result) in results {
                    let Some((revision, record)) = round.get(&ip) else { continue };
                    match result {
                        EndpointResult::Written(at) => {
                            drop(self.records.written.insert(ip, (at, record.clone())))
                        }
                        EndpointResult::Deleted => drop(self.records.written.insert(ip, (*revision, None))),
                        EndpointResult::Superseded => {}
                        EndpointResult::Fenced => {
                            self.ipam.changed = true;
                            self.error(format!(
                                "endpoint {ip} not recorded: its pod CIDR is not this node's any more"
                            ));
                        }
                    }
                    if result != EndpointResult::Fenced {
                        self.on_own_endpoint_record(ip);
                    }
                }
            }
            Err(error) => {
                self.records.paused_until = self.now.monotonic + REFUSED_RETRY;
                self.records.dirty.extend(round.into_keys());
                self.error(format!("endpoints not recorded: {error}"));
            }
        }
    }

    /// Tells by gossip what has changed of this node since it last told.
    pub(crate) fn publish(&mut self) {
        let Some(fleet_id) = self.membership.fleet_id.clone().filter(|_| self.is_member()) else { return };
        let health = match (&self.membership.halted, &self.store.suspect) {
            (Some(reason), _) | (None, Some(reason)) => NodeHealth::degraded(reason),
            (None, None) => NodeHealth::Ok,
        };
        let (_, Generation(applied_generation)) = self.reconciler.generations();
        let incarnation =
            self.membership.registered.as_ref().map_or(self.config.incarnation, |own| own.incarnation);
        let facts = NodeFacts {
            fleet_id,
            node: self.config.node.clone(),
            incarnation,
            underlay: self.underlay.addresses.clone(),
            moves: self.moves,
            gateway: self.gateway(),
            cidrs: self
                .ipam
                .own
                .iter()
                .map(|(cidr, epoch)| CidrFact { cidr: *cidr, life: epoch.life, epoch: epoch.revision.0 })
                .collect(),
            applied_generation,
            health,
            recorded_life: self.view.life().number,
            recorded_revision: self.view.revision().0,
            cut_off: !self.store.connected,
            pending: Vec::new(),
            unwell: self.unwell_facts(),
        };
        // Generation and revision alone are no news: telling each plan to everybody would cost more than it says.
        let version = self.records.version;
        let news = self.records.published.as_ref().is_none_or(|(told, told_version)| {
            *told_version != version
                || *told
                    != NodeFacts {
                        applied_generation: told.applied_generation,
                        recorded_life: told.recorded_life,
                        recorded_revision: told.recorded_revision,
                        ..facts.clone()
                    }
        });
        if news {
            let pending = self.pending_changes();
            self.records.published = Some((facts.clone(), version));
            self.out.push(Command::Publish(NodeFacts { pending, ..facts }));
        }
    }

    /// What the store has not confirmed, the oldest first, and behind it what is told again.
    fn pending_changes(&self) -> Vec<PendingEndpoint> {
        let ours = |ip| self.ipam.own.iter().any(|(cidr, _)| cidr.contains(ip));
        let mut pending: Vec<PendingEndpoint> =
            self.records.pending.values().filter(|change| ours(change.ip)).cloned().collect();
        pending.sort_by_key(|change| change.sequence);
        pending.truncate(MAX_PENDING);
        pending.extend(self.records.again.iter().filter(|change| ours(change.ip)).cloned());
        pending
    }
}

/// Whether two records say the same, fields of newer versions aside.
fn same(a: &EndpointRecord, b: &EndpointRecord) -> bool {
    (&a.name, a.identity, &a.labels_digest, &a.labels, a.terminating)
        == (&b.name, b.identity, &b.labels_digest, &b.labels, b.terminating)
}
