//! What the store and gossip say of this node's endpoints: records that follow the kernel, and the changes that the store
//! has not confirmed yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use kvstore_claims::{ClaimError, EndpointChange, EndpointResult, EndpointWrites};
use kvstore_schema::{
    Revision,
    record::{ClaimEpoch, EndpointRecord},
};
use node_facts::{NodeFacts, PendingEndpoint, PendingOp};
use serde::{Deserialize, Serialize};

use crate::{
    Command, EndpointState,
    context::Context,
    endpoints::Endpoints,
    fleet::Fleet,
    ipam::Ipam,
    limits::{MAX_PENDING, MAX_REPEATED, REFUSED_RETRY, WRITES_PER_ROUND},
    requests::Task,
};

/// A record with its revision; or, if the record was deleted, the revision that it had.
type Known = (Revision, Option<Arc<EndpointRecord>>);

/// The record that an address should have.
enum Wanted {
    Record(EndpointRecord),
    Absent,
    /// The endpoint is changing, or is not completely known: its record stays as it is.
    Undecided,
}

/// Records to be written and changes to be gossiped. One per node.
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
    last_sequence: u64,
    /// Removals that the store has confirmed lately. Unlike existing endpoints they have no record.
    removed: BTreeMap<IpAddr, PendingEndpoint>,
    /// Confirmed changes that are gossiped again, for peers that are cut off from the store.
    repeated: Vec<PendingEndpoint>,
    /// Rises with every change of `pending` and `repeated`.
    version: u64,
    paused_until: Duration,
    /// The facts that were published last, without changes, and the version of the changes.
    published: Option<(NodeFacts, u64)>,
}

impl Records {
    /// Writes that wait or are in flight.
    pub(crate) fn queued(&self) -> usize {
        self.dirty.len() + self.round.as_ref().map_or(0, BTreeMap::len)
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        (!self.dirty.is_empty() && self.round.is_none()).then_some(self.paused_until)
    }

    /// The record of an endpoint of this node as the store has it, to the best of this node's knowledge.
    fn known(&self, fleet: &Fleet, ip: IpAddr) -> Option<(Revision, Arc<EndpointRecord>)> {
        let seen = fleet.record(fleet.node(), ip).map(|entry| (entry.modified, entry.record.clone()));
        match self.written.get(&ip) {
            Some((at, Some(record))) if fleet.view().revision() < *at => Some((*at, record.clone())),
            Some((deleted, None)) => seen.filter(|(modified, _)| modified > deleted),
            Some((_, Some(_))) | None => seen,
        }
    }

    /// Whether the store has the right record.
    pub(crate) fn is_recorded(&self, fleet: &Fleet, endpoints: &Endpoints, ip: IpAddr) -> bool {
        match (wanted(endpoints, ip), self.known(fleet, ip)) {
            (Wanted::Record(wanted), Some((_, known))) => same(&wanted, &known),
            _ => false,
        }
    }

    /// Compares the endpoints that changed, or whose records changed, with their records. `cut_off_since`: how far the
    /// store is known to the peer that knows least of it, among those that are cut off from it.
    pub(crate) fn refresh(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        endpoints: &Endpoints,
        cut_off_since: Option<ClaimEpoch>,
    ) {
        let changed = std::mem::take(&mut cx.changes.own_endpoints);
        let repeat =
            std::mem::take(&mut cx.changes.cut_off) || (cut_off_since.is_some() && !changed.is_empty());
        for ip in changed {
            self.catch_up(fleet, ip);
            // Before the kernel and the store have been seen once, what is missing proves nothing.
            if cx.startup.knows_own_records() {
                self.compare(fleet, endpoints, ip);
            }
        }
        if repeat {
            self.repeat_confirmed(fleet, cut_off_since);
        }
    }

    /// The view may show by now what was written.
    fn catch_up(&mut self, fleet: &Fleet, ip: IpAddr) {
        let shown = match self.written.get(&ip) {
            Some((at, Some(_))) => fleet.view().revision() >= *at,
            Some((deleted, None)) => {
                fleet.record(fleet.node(), ip).is_none_or(|entry| entry.modified > *deleted)
            }
            None => false,
        };
        if shown {
            self.written.remove(&ip);
        }
    }

    fn compare(&mut self, fleet: &Fleet, endpoints: &Endpoints, ip: IpAddr) {
        let known = self.known(fleet, ip);
        let (op, record) = match (wanted(endpoints, ip), known) {
            (Wanted::Undecided, _) => return,
            (Wanted::Record(wanted), Some((_, known))) if same(&wanted, &known) => {
                return self.settled(fleet, ip);
            }
            (Wanted::Absent, None) => return self.settled(fleet, ip),
            (Wanted::Record(wanted), _) => (PendingOp::Added, wanted),
            (Wanted::Absent, Some((_, known))) => (PendingOp::Removed, known.as_ref().clone()),
        };
        self.dirty.insert(ip);
        let same = |reported: &PendingEndpoint| {
            (reported.op, reported.identity, &reported.name, reported.terminating)
                == (op, record.identity, &record.name, record.terminating)
        };
        if self.pending.get(&ip).is_some_and(same) {
            return;
        }
        self.last_sequence += 1;
        self.version += 1;
        self.removed.remove(&ip);
        let change = change(ip, op, &record);
        self.pending.insert(ip, PendingEndpoint { sequence: self.last_sequence, ..change });
    }

    /// The store has the right record, or rightly none.
    fn settled(&mut self, fleet: &Fleet, ip: IpAddr) {
        self.dirty.remove(&ip);
        // A change leaves gossip only when the view shows it: facts say up to which revision the store has all else.
        if self.written.contains_key(&ip) {
            return;
        }
        let Some(change) = self.pending.remove(&ip) else { return };
        self.version += 1;
        if change.op == PendingOp::Removed {
            let recorded = Some(fleet.view().revision().0);
            self.removed.insert(ip, PendingEndpoint { sequence: 0, recorded, ..change });
            if self.removed.len() > MAX_REPEATED
                && let Some(oldest) = self.removed.values().min_by_key(|change| change.recorded)
            {
                let oldest = oldest.ip;
                self.removed.remove(&oldest);
            }
        }
    }

    /// Finds the confirmed changes that the peer which is cut off for longest cannot have seen. The newest of them
    /// suffice: those beyond the limit were gossiped while they were new. O(this node's endpoints) while a peer is cut
    /// off.
    fn repeat_confirmed(&mut self, fleet: &Fleet, cut_off_since: Option<ClaimEpoch>) {
        let repeated = cut_off_since.map(|since| self.confirmed_since(fleet, since)).unwrap_or_default();
        if repeated != self.repeated {
            self.repeated = repeated;
            self.version += 1;
        }
    }

    fn confirmed_since(&self, fleet: &Fleet, since: ClaimEpoch) -> Vec<PendingEndpoint> {
        let life = fleet.view().life().number;
        let unseen = |recorded: i64| ClaimEpoch { life, revision: Revision(recorded) } > since;
        let records = fleet.records(fleet.node());
        let there = records.filter(|(_, entry)| unseen(entry.modified.0)).map(|(ip, entry)| {
            let recorded = Some(entry.modified.0);
            PendingEndpoint { recorded, ..change(ip, PendingOp::Added, &entry.record) }
        });
        let gone = self.removed.values().filter(|change| change.recorded.is_some_and(unseen)).cloned();
        // A newer change is pending.
        let settled = |change: &PendingEndpoint| !self.pending.contains_key(&change.ip);
        let mut confirmed: Vec<PendingEndpoint> = there.chain(gone).filter(settled).collect();
        confirmed.sort_by_key(|change| (std::cmp::Reverse(change.recorded), change.ip));
        confirmed.truncate(MAX_REPEATED);
        confirmed
    }

    /// The store has lost what was written, as far as is known.
    pub(crate) fn write_again(&mut self) {
        self.round = None;
        self.written.clear();
        self.removed.clear();
        self.paused_until = Duration::ZERO;
    }

    /// Writes what is to be written, one round at a time.
    pub(crate) fn pursue(&mut self, cx: &mut Context, fleet: &Fleet, ipam: &Ipam, endpoints: &Endpoints) {
        let due = cx.now.monotonic >= self.paused_until;
        if self.round.is_some() || self.dirty.is_empty() || !fleet.has_joined() || !due {
            return;
        }
        let mut round = BTreeMap::new();
        let mut changes = Vec::new();
        for ip in std::mem::take(&mut self.dirty) {
            if round.len() == WRITES_PER_ROUND {
                self.dirty.insert(ip);
                continue;
            }
            match (wanted(endpoints, ip), self.known(fleet, ip)) {
                (Wanted::Record(mut record), known) => {
                    // Without a block there is no fence: it is tried again when the block is held.
                    let Some(block) = ipam.block_of(ip) else { continue };
                    let (cidr, epoch) = (block.cidr, block.epoch);
                    record.unknown = known.map(|(_, known)| known.unknown.clone()).unwrap_or_default();
                    round.insert(ip, (Revision::default(), Some(Arc::new(record.clone()))));
                    changes.push(EndpointChange::Put { ip, record, cidr, epoch });
                }
                (Wanted::Absent, Some((revision, known))) => {
                    round.insert(ip, (revision, None));
                    changes.push(EndpointChange::Delete { ip, name: known.name.clone(), revision });
                }
                (Wanted::Absent, None) | (Wanted::Undecided, _) => {}
            }
        }
        match EndpointWrites::start(fleet.view(), fleet.node().clone(), changes) {
            Ok(Some((machine, request))) => {
                self.round = Some(round);
                cx.ask(request, Task::WriteRecords(machine));
            }
            Ok(None) => {}
            Err(error) => cx.error(error.to_string()),
        }
    }

    pub(crate) fn on_written(
        &mut self,
        cx: &mut Context,
        end: Result<Vec<(IpAddr, EndpointResult)>, ClaimError>,
    ) {
        let mut round = self.round.take().unwrap_or_default();
        let results = match end {
            Ok(results) => results,
            Err(error) => {
                self.paused_until = cx.now.monotonic + REFUSED_RETRY;
                self.dirty.extend(round.into_keys());
                return cx.error(format!("endpoints not recorded: {error}"));
            }
        };
        for (ip, result) in results {
            let Some((revision, record)) = round.remove(&ip) else { continue };
            match result {
                EndpointResult::Written(at) => drop(self.written.insert(ip, (at, record))),
                EndpointResult::Deleted => drop(self.written.insert(ip, (revision, None))),
                EndpointResult::Superseded => {}
                EndpointResult::Fenced => {
                    cx.changes.claims = true;
                    cx.error(format!("endpoint {ip} not recorded: its pod CIDR is not this node's any more"));
                    continue;
                }
            }
            cx.changes.own_endpoints.insert(ip);
        }
    }

    /// Gossips this node's facts if they changed. `facts`: all but the pending changes.
    pub(crate) fn publish(&mut self, cx: &mut Context, ipam: &Ipam, facts: NodeFacts) {
        // A new generation or revision alone is no news: telling each plan to all nodes would cost more than it is worth.
        let news = self.published.as_ref().is_none_or(|(before, version)| {
            let comparable = NodeFacts {
                applied_generation: before.applied_generation,
                recorded_life: before.recorded_life,
                recorded_revision: before.recorded_revision,
                ..facts.clone()
            };
            *version != self.version || *before != comparable
        });
        if news {
            let pending = self.changes(ipam);
            self.published = Some((facts.clone(), self.version));
            cx.command(Command::Publish(NodeFacts { pending, ..facts }));
        }
    }

    /// What the store has not confirmed, the oldest first, and then what is repeated.
    fn changes(&self, ipam: &Ipam) -> Vec<PendingEndpoint> {
        let ours = |ip| ipam.own().iter().any(|(cidr, _)| cidr.contains(ip));
        let mut changes: Vec<PendingEndpoint> =
            self.pending.values().filter(|change| ours(change.ip)).cloned().collect();
        changes.sort_by_key(|change| change.sequence);
        changes.truncate(MAX_PENDING);
        changes.extend(self.repeated.iter().filter(|change| ours(change.ip)).cloned());
        changes
    }
}

fn wanted(endpoints: &Endpoints, ip: IpAddr) -> Wanted {
    let Some(endpoint) = endpoints.at(ip) else { return Wanted::Absent };
    match (endpoint.state, &endpoint.digest, endpoint.identity) {
        (EndpointState::Ready, Some(digest), Some(identity)) if identity.is_fleet() => {
            Wanted::Record(EndpointRecord {
                name: endpoint.name.clone(),
                identity,
                labels_digest: digest.clone(),
                labels: endpoint.labels.clone(),
                terminating: endpoint.terminating,
                unknown: Default::default(),
            })
        }
        _ => Wanted::Undecided,
    }
}

/// A change of an endpoint, for gossip.
fn change(ip: IpAddr, op: PendingOp, record: &EndpointRecord) -> PendingEndpoint {
    PendingEndpoint {
        ip,
        identity: record.identity,
        labels_digest: record.labels_digest.clone(),
        labels: record.labels.clone(),
        name: record.name.clone(),
        terminating: record.terminating,
        op,
        sequence: 0,
        recorded: None,
    }
}

/// Whether two records say the same, fields of newer versions aside.
fn same(a: &EndpointRecord, b: &EndpointRecord) -> bool {
    (&a.name, a.identity, &a.labels_digest, &a.labels, a.terminating)
        == (&b.name, b.identity, &b.labels_digest, &b.labels, b.terminating)
}
