//! Leaderless garbage collection: unused numbers and blocks go into quarantine, and are deleted when it ends.
//!
//! Every node runs one collector at a jittered pace. Nothing is agreed on beforehand: the conditions of each request hold
//! only if the store is still as the collector saw it. "No key under `refs/<id>/`" is one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use identity::{Identity, NodeName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Condition, Key, KvOp, KvRequest, Revision, Txn,
    record::{CidrRecord, ClaimState, IdentityIdRecord},
};
use serde::{Deserialize, Serialize};

use crate::{FleetView, machine::put};

/// How long a number or block rests before it may be given to others: above the time for which a node that
/// is cut off from the store uses what it knew and heals (minutes), below what an operator would take for a fault.
pub const QUARANTINE: Duration = Duration::from_secs(15 * 60);

/// A subject whose time the collector measures.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Subject {
    Identity(Identity),
    Cidr(IpNetwork),
    /// A node that owns things and has no record: an operator removed it.
    Removed(NodeName),
}

/// One request that could be made.
#[derive(Debug, Clone)]
enum Job {
    QuarantineIdentity(Identity),
    DeleteIdentity(Identity),
    QuarantineCidr(IpNetwork),
    DeleteCidr(IpNetwork),
    DeleteRefs(NodeName),
    DeleteEndpoints(NodeName),
}

/// Plans garbage collection. One per agent; it lives as long as the agent and forgets nothing by itself.
///
/// Invariants: a quarantine is measured by this collector's own clock, from the moment it first saw the
/// revision, so neither other clocks nor a restart shorten it; the records of a silent node are never touched,
/// only those of nodes whose own record an operator has deleted, and these only after a quarantine's time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Collector {
    quarantine: Duration,
    /// Each subject's revision, and since when this collector has seen the subject at that revision.
    seen: BTreeMap<Subject, (Revision, Duration)>,
}

impl Collector {
    /// `quarantine`: [`QUARANTINE`] unless a test wants less.
    pub fn new(quarantine: Duration) -> Self {
        Self { quarantine, seen: BTreeMap::new() }
    }

    /// One request that is due, chosen by `draw` among all so that many collectors rarely choose the same,
    /// or nothing. `now`: the caller's monotone clock. Call it every few seconds, with jitter: the clocks of
    /// quarantines run from one call to the next. `used`: numbers that are known to be in use without a reference, as by
    /// a node that cannot write one now. Costs O(identities + claims + nodes).
    ///
    /// The caller may ignore the outcome of the request: the view will show it.
    pub fn plan(
        &mut self,
        view: &FleetView,
        used: &BTreeSet<Identity>,
        now: Duration,
        draw: u64,
    ) -> Option<KvRequest> {
        // What an incomplete view does not show may exist all the same (P6).
        if !view.is_complete() {
            return None;
        }
        let jobs = self.due(view, used, now);
        let job = jobs.get((draw % jobs.len().max(1) as u64) as usize)?;
        request(view, job)
    }

    fn due(&mut self, view: &FleetView, used: &BTreeSet<Identity>, now: Duration) -> Vec<Job> {
        let mut jobs = Vec::new();
        let before = std::mem::take(&mut self.seen);
        let quarantine = self.quarantine;
        let mut over = |subject: Subject, revision: Revision| {
            let since = match before.get(&subject) {
                Some((same, since)) if *same == revision => *since,
                _ => now,
            };
            self.seen.insert(subject, (revision, since));
            now.saturating_sub(since) >= quarantine
        };
        for node in owners(view).into_iter().filter(|node| is_removed(view, node)) {
            if over(Subject::Removed(node.clone()), Revision::default()) {
                let mine = |claim: &CidrRecord| claim.node == *node && claim.state == ClaimState::Live;
                let claims = view.cidrs().iter().filter(|(_, claim)| mine(&claim.record));
                jobs.extend(claims.map(|(cidr, _)| Job::QuarantineCidr(*cidr)));
                if view.refs_by_node().contains_key(node) {
                    jobs.push(Job::DeleteRefs(node.clone()));
                }
                if view.endpoints().contains_key(node) {
                    jobs.push(Job::DeleteEndpoints(node.clone()));
                }
            }
        }
        for (identity, entry) in view.identities() {
            if !view.refs(*identity).is_empty() || used.contains(identity) {
                continue;
            }
            match entry.record.state {
                ClaimState::Live => jobs.push(Job::QuarantineIdentity(*identity)),
                ClaimState::Quarantined if over(Subject::Identity(*identity), entry.modified) => {
                    jobs.push(Job::DeleteIdentity(*identity));
                }
                ClaimState::Quarantined => {}
            }
        }
        for (cidr, claim) in view.cidrs() {
            if claim.record.state == ClaimState::Quarantined && over(Subject::Cidr(*cidr), claim.modified) {
                jobs.push(Job::DeleteCidr(*cidr));
            }
        }
        jobs
    }
}

/// Every node that owns a claim, a reference or an endpoint record.
fn owners(view: &FleetView) -> BTreeSet<&NodeName> {
    let claims = view.cidrs().values().map(|claim| &claim.record.node);
    claims.chain(view.refs_by_node().keys()).chain(view.endpoints().keys()).collect()
}

/// Whether an operator has removed a node: it has no record, readable or not, and no liveness key.
fn is_removed(view: &FleetView, node: &NodeName) -> bool {
    !view.has_key(&view.schema().node(node)) && !view.has_key(&view.schema().alive(node))
}

fn request(view: &FleetView, job: &Job) -> Option<KvRequest> {
    let txn = match job {
        Job::QuarantineIdentity(identity) => quarantine_identity(view, *identity)?,
        Job::DeleteIdentity(identity) => delete_identity(view, *identity)?,
        Job::QuarantineCidr(cidr) => {
            let claim = view.cidrs().get(cidr)?;
            let key = view.schema().cidr(*cidr);
            let record = CidrRecord { state: ClaimState::Quarantined, ..claim.record.clone() };
            removed(view, &claim.record.node)
                .when(Condition::ModRevision(key.clone(), claim.modified))
                .then(put(key, &record))
        }
        Job::DeleteCidr(cidr) => {
            delete(Txn::new(), view.schema().cidr(*cidr), view.cidrs().get(cidr)?.modified)
        }
        Job::DeleteRefs(node) => {
            let refs = view.refs_by_node().get(node)?.iter().filter_map(|identity| {
                Some((view.schema().identity_ref(*identity, node), view.refs(*identity).get(node)?.modified))
            });
            delete_many(view, node, refs)
        }
        Job::DeleteEndpoints(node) => {
            let endpoints = view.endpoints().get(node)?.iter();
            delete_many(
                view,
                node,
                endpoints.map(|(ip, entry)| (view.schema().endpoint(node, *ip), entry.modified)),
            )
        }
    };
    Some(KvRequest::Txn(txn))
}

fn quarantine_identity(view: &FleetView, identity: Identity) -> Option<Txn> {
    let entry = view.identities().get(&identity)?;
    let key = view.schema().identity_id(identity);
    let record = IdentityIdRecord { state: ClaimState::Quarantined, ..entry.record.clone() };
    Some(
        Txn::new()
            .when(Condition::ModRevision(key.clone(), entry.modified))
            .when(Condition::RangeEmpty(view.schema().identity_refs(identity)))
            .then(put(key, &record)),
    )
}

/// Deletes a number, and its label set's record if that points to the number.
fn delete_identity(view: &FleetView, identity: Identity) -> Option<Txn> {
    let entry = view.identities().get(&identity)?;
    let digest = entry.record.labels.digest();
    let labels_key = view.schema().identity_labels(&digest);
    let txn = Txn::new().when(Condition::RangeEmpty(view.schema().identity_refs(identity)));
    let txn = match view.identity_labels().get(&digest) {
        Some(labels) if labels.record.id == identity => delete(txn, labels_key, labels.modified),
        Some(labels) => txn.when(Condition::ModRevision(labels_key, labels.modified)),
        None => txn.when(Condition::Absent(labels_key)),
    };
    Some(delete(txn, view.schema().identity_id(identity), entry.modified))
}

/// Deletes as many of a removed node's keys as fit one transaction.
fn delete_many(view: &FleetView, node: &NodeName, keys: impl Iterator<Item = (Key, Revision)>) -> Txn {
    let txn = removed(view, node);
    let room = Txn::MAX_OPS - txn.conditions.len();
    keys.take(room).fold(txn, |txn, (key, revision)| delete(txn, key, revision))
}

fn delete(txn: Txn, key: Key, revision: Revision) -> Txn {
    txn.when(Condition::ModRevision(key.clone(), revision)).then(KvOp::Delete(key))
}

/// Holds only while the node is removed.
fn removed(view: &FleetView, node: &NodeName) -> Txn {
    let schema = view.schema();
    Txn::new().when(Condition::Absent(schema.node(node))).when(Condition::Absent(schema.alive(node)))
}
