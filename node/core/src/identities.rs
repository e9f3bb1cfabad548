//! The label sets of this node's endpoints, and the fleet's identities for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use identity::{Identity, LabelDigest, Labels};
use kvstore_claims::{ClaimError, IdentityAcquire, IdentityGrant, IdentityRelease};
use kvstore_schema::{Revision, record::ClaimState};
use node_facts::PendingOp;
use serde::{Deserialize, Serialize};

use crate::{
    IdentityView, NodeConfig, context::Context, fleet::Fleet, limits::IDENTITY_GRACE, peers::Peers,
    requests::Task,
};

/// In place of the revision of a reference that has not been written yet.
const UNREFERENCED: Revision = Revision(0);

/// What is being done about a label set. At most one machine at a time, as the protocols demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Work {
    /// Nothing: the reference is as it should be.
    None,
    /// The reference should be taken (again), and no machine has started yet.
    Wanted,
    /// The reference is being taken.
    Acquiring,
    /// The reference is being released.
    Releasing,
}

/// One label set in use on this node, or in use until a while ago.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LocalIdentity {
    labels: Labels,
    /// Its identity and the revision of this node's reference, once there is one.
    held: Option<(Identity, Revision)>,
    work: Work,
    /// Endpoints of this node that have the identity or wait for it.
    users: usize,
    /// Since when there are no users.
    idle_since: Option<Duration>,
}

/// All label sets. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Identities {
    sets: BTreeMap<LabelDigest, LocalIdentity>,
    /// Those whose [`Work`] is wanted.
    wanted: BTreeSet<LabelDigest>,
    /// Those without users, by the end of their grace.
    idle: BTreeSet<(Duration, LabelDigest)>,
}

/// What a label set's identity has become, for the endpoints that have or await it.
pub(crate) enum IdentityChange {
    /// The label set has this identity.
    Granted(LabelDigest, Identity),
    /// The label set's identity stands for other labels now; another one follows.
    Lost(LabelDigest),
    /// The label set gets no identity.
    Refused(LabelDigest, ClaimError),
}

impl Identities {
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.idle.first().map(|(at, _)| *at)
    }

    /// Identities to which the store has a reference of this node, with their labels.
    pub(crate) fn referenced(&self) -> impl Iterator<Item = (Identity, &Labels)> {
        let ours = self.held().filter(|(_, reference, _)| *reference != UNREFERENCED);
        ours.map(|(identity, _, labels)| (identity, labels))
    }

    fn held(&self) -> impl Iterator<Item = (Identity, Revision, &Labels)> {
        let ours = self.sets.values().filter(|set| set.work != Work::Releasing);
        ours.filter_map(|set| set.held.map(|(identity, reference)| (identity, reference, &set.labels)))
    }

    /// Identities in use that the store may have no reference to yet: this node's, and those that gossip reports.
    pub(crate) fn in_use(&self, peers: &Peers) -> BTreeSet<Identity> {
        let ours = self.held().map(|(identity, ..)| identity);
        let reported = peers.pending_endpoints().filter(|change| change.op == PendingOp::Added);
        ours.chain(reported.map(|change| change.identity)).collect()
    }

    /// Endpoints of this node with a label set.
    fn users(&self, digest: &LabelDigest) -> usize {
        self.sets.get(digest).map_or(0, |set| set.users)
    }

    fn want(&mut self, digest: &LabelDigest) {
        if let Some(set) = self.sets.get_mut(digest) {
            match set.work {
                // The machine that runs is followed by another look when it ends.
                Work::Acquiring | Work::Releasing => {}
                Work::None | Work::Wanted => {
                    set.work = Work::Wanted;
                    self.wanted.insert(digest.clone());
                }
            }
        }
    }

    /// Counts one more user of a label set. Returns its identity if it may be used at once; otherwise it follows later as
    /// an [`IdentityChange`].
    pub(crate) fn acquire(
        &mut self,
        cx: &Context,
        fleet: &Fleet,
        peers: &Peers,
        digest: &LabelDigest,
        labels: &Labels,
    ) -> Option<Identity> {
        let known = referenced(fleet, digest)
            .or_else(|| Some((known_identity(cx, fleet, peers, digest)?, UNREFERENCED)));
        let set = self.sets.entry(digest.clone()).or_insert_with(|| LocalIdentity {
            labels: labels.clone(),
            held: known,
            work: Work::None,
            users: 0,
            idle_since: None,
        });
        set.users += 1;
        if set.work != Work::Releasing && set.held.is_none() {
            set.held = known;
        }
        if let Some(since) = set.idle_since.take() {
            self.idle.remove(&(since + IDENTITY_GRACE, digest.clone()));
        }
        // While the reference is being released the identity is not this node's, whatever the store still shows.
        let identity = set.held.filter(|_| set.work != Work::Releasing).map(|(identity, _)| identity);
        let ours = set.held.is_some_and(|(_, revision)| revision > fleet.started_revision());
        if !ours {
            // A former agent's reference is taken again: a late release by that agent must not count.
            self.want(digest);
        }
        identity
    }

    /// Counts one user of a label set less.
    pub(crate) fn release(&mut self, digest: &LabelDigest, now: Duration) {
        let Some(set) = self.sets.get_mut(digest) else { return };
        set.users = set.users.saturating_sub(1);
        if set.users == 0 {
            set.idle_since = Some(now);
            self.idle.insert((now + IDENTITY_GRACE, digest.clone()));
        }
    }

    /// Starts the machines that are due.
    pub(crate) fn pursue(&mut self, cx: &mut Context, fleet: &Fleet) -> Vec<IdentityChange> {
        let mut changes = Vec::new();
        if !fleet.is_registered() {
            return changes;
        }
        for digest in std::mem::take(&mut self.wanted) {
            changes.extend(self.take_reference(cx, fleet, digest));
        }
        let now = cx.now.monotonic;
        while let Some((_, digest)) = self.idle.first().filter(|(at, _)| *at <= now).cloned() {
            self.idle.pop_first();
            self.release_reference(cx, fleet, digest);
        }
        changes
    }

    fn take_reference(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        digest: LabelDigest,
    ) -> Option<IdentityChange> {
        let draw = cx.rng.u64(..);
        let set = self.sets.get_mut(&digest)?;
        let (node, incarnation) = (fleet.node().clone(), fleet.incarnation(&cx.config));
        let held = set.held.map(|(identity, _)| identity);
        match IdentityAcquire::start(fleet.view(), node, incarnation, set.labels.clone(), held, draw) {
            Ok((machine, request)) => {
                set.work = Work::Acquiring;
                cx.ask(request, Task::AcquireIdentity(digest, machine));
                None
            }
            // It is tried again at the next event; the end of the restoration is one.
            Err(ClaimError::Restoring) => {
                self.wanted.insert(digest);
                None
            }
            Err(error) => self.on_acquired(cx, digest, Err(error)),
        }
    }

    fn release_reference(&mut self, cx: &mut Context, fleet: &Fleet, digest: LabelDigest) {
        let Some(set) = self.sets.get_mut(&digest) else { return };
        match (set.work, set.held) {
            // Looked at again when the machine ends.
            (Work::Acquiring | Work::Releasing, _) => {}
            (Work::None | Work::Wanted, None) => drop(self.sets.remove(&digest)),
            (Work::None | Work::Wanted, Some((identity, revision))) => {
                set.work = Work::Releasing;
                let (schema, node) = (fleet.view().schema(), fleet.node().clone());
                let incarnation = fleet.incarnation(&cx.config);
                let (machine, request) =
                    IdentityRelease::start(schema, node, incarnation, identity, revision);
                cx.ask(request, Task::ReleaseIdentity(digest, machine));
            }
        }
    }

    pub(crate) fn on_acquired(
        &mut self,
        cx: &mut Context,
        digest: LabelDigest,
        end: Result<IdentityGrant, ClaimError>,
    ) -> Option<IdentityChange> {
        let set = self.sets.get_mut(&digest)?;
        set.work = Work::None;
        // The grace may have ended while the machine ran.
        if let Some(since) = set.idle_since {
            self.idle.insert((since + IDENTITY_GRACE, digest.clone()));
        }
        match end {
            Ok(grant) => {
                set.held = Some((grant.identity, grant.ref_revision));
                Some(IdentityChange::Granted(digest, grant.identity))
            }
            Err(error) => {
                cx.error(error.to_string());
                if matches!(error, ClaimError::NotRegistered { .. }) {
                    cx.changes.unregistered = true;
                    self.want(&digest);
                    return None;
                }
                Some(IdentityChange::Refused(digest, error))
            }
        }
    }

    pub(crate) fn on_released(
        &mut self,
        cx: &mut Context,
        digest: &LabelDigest,
        end: Result<(), ClaimError>,
    ) {
        if let Err(error) = end {
            cx.error(error.to_string());
        }
        let Some(set) = self.sets.get_mut(digest) else { return };
        set.work = Work::None;
        set.held = None;
        if set.users > 0 {
            self.want(digest);
        } else {
            self.sets.remove(digest);
        }
    }

    /// The store has lost this node's references: those in use are taken again, with the same identities.
    pub(crate) fn acquire_again(&mut self, now: Duration) {
        self.sets.retain(|_, set| set.users > 0 || set.work != Work::Releasing);
        for (digest, set) in &mut self.sets {
            set.held = set.held.map(|(identity, _)| (identity, UNREFERENCED));
            set.work = Work::None;
            if set.users > 0 {
                set.work = Work::Wanted;
                self.wanted.insert(digest.clone());
            } else if let Some(since) = set.idle_since {
                self.idle.insert(((since + IDENTITY_GRACE).max(now), digest.clone()));
            }
        }
    }

    /// An identity's record came, went, or has other labels. Endpoints of this node that have the identity with other
    /// labels lose it at once: until they have another one, nothing is known of who they are.
    pub(crate) fn on_identity(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        identity: Identity,
    ) -> Option<IdentityChange> {
        let labels = fleet.labels_of(identity)?;
        let taken =
            |set: &LocalIdentity| set.held.is_some_and(|(held, _)| held == identity) && set.labels != *labels;
        let (digest, set) = self.sets.iter_mut().find(|(_, set)| taken(set))?;
        set.held = None;
        let digest = digest.clone();
        cx.error(format!(
            "identity {identity} was given to other labels; endpoints of this node get another"
        ));
        self.want(&digest);
        Some(IdentityChange::Lost(digest))
    }

    /// This node's reference to an identity came or went in the store.
    pub(crate) fn on_own_reference(&mut self, cx: &Context, fleet: &Fleet, identity: Identity, gone: bool) {
        if !gone {
            // The reference may be late: of an attempt that was abandoned.
            return self.adopt_reference(cx, fleet, identity);
        }
        let seen = fleet.view().revision();
        let lost = self.sets.iter().find(|(_, set)| {
            let held = set.held.is_some_and(|(held, revision)| held == identity && revision <= seen);
            held && set.work == Work::None
        });
        if let Some((digest, set)) = lost
            && set.users > 0
        {
            self.want(&digest.clone());
        }
    }

    /// Takes references that a former agent has left behind into care: without users, they are released after the grace.
    pub(crate) fn adopt_references(&mut self, cx: &Context, fleet: &Fleet) {
        for identity in fleet.view().refs_by_node().get(fleet.node()).into_iter().flatten() {
            self.adopt_reference(cx, fleet, *identity);
        }
    }

    fn adopt_reference(&mut self, cx: &Context, fleet: &Fleet, identity: Identity) {
        let Some(labels) = fleet.labels_of(identity).cloned() else { return };
        let digest = labels.digest();
        if self.sets.contains_key(&digest) {
            return;
        }
        let now = cx.now.monotonic;
        let held = referenced(fleet, &digest);
        self.idle.insert((now + IDENTITY_GRACE, digest.clone()));
        let idle = LocalIdentity { labels, held, work: Work::None, users: 0, idle_since: Some(now) };
        self.sets.insert(digest, idle);
    }

    /// Reserved and fleet identities, by number.
    pub(crate) fn views(&self, fleet: &Fleet) -> Vec<IdentityView> {
        let reserved = (1..=Identity::REMOTE_NODE.get()).filter_map(|number| {
            let id = Identity::new(number).ok()?;
            Some(IdentityView {
                id,
                labels: Labels::default(),
                reserved: Some(id.reserved_name()?.to_owned()),
                digest: None,
                quarantined: false,
                nodes: Vec::new(),
                local_endpoints: 0,
            })
        });
        let known = fleet.view().identities().iter().map(|(id, entry)| {
            let digest = entry.record.labels.digest();
            IdentityView {
                id: *id,
                labels: entry.record.labels.clone(),
                reserved: None,
                quarantined: entry.record.state == ClaimState::Quarantined,
                nodes: fleet.view().refs(*id).keys().cloned().collect(),
                local_endpoints: self.users(&digest),
                digest: Some(digest),
            }
        });
        reserved.chain(known).collect()
    }
}

/// The identity of a live label set to which the store shows a reference of this node.
fn referenced(fleet: &Fleet, digest: &LabelDigest) -> Option<(Identity, Revision)> {
    let identity = fleet.view().identity_labels().get(digest)?.record.id;
    let live = fleet.view().identities().get(&identity)?.record.state == ClaimState::Live;
    let reference = fleet.view().refs(identity).get(fleet.node())?;
    live.then_some((identity, reference.modified))
}

/// The identity of a label set that other nodes use and this node does not refer to yet. Using it before the reference is
/// written is safe while the store has been silent for less than half of the quarantine: a collector has to see the
/// identity unused for a whole quarantine first, and gossip reports the use meanwhile.
fn known_identity(cx: &Context, fleet: &Fleet, peers: &Peers, digest: &LabelDigest) -> Option<Identity> {
    let NodeConfig { quarantine, .. } = &cx.config;
    if fleet.silent_for(cx.now)? > *quarantine / 2 {
        return None;
    }
    let view = fleet.view();
    let recorded = view.identity_labels().get(digest).map(|entry| entry.record.id);
    if let Some(entry) = recorded.and_then(|identity| view.identities().get(&identity)) {
        return recorded.filter(|_| entry.record.state == ClaimState::Live);
    }
    // The identity may have been allocated while this node did not hear the store.
    let reported = peers.pending_endpoints().find(|change| {
        change.op == PendingOp::Added
            && change.labels_digest == *digest
            && change.identity.is_fleet()
            && cx.identity_labels(&change.labels).digest() == *digest
    });
    reported.map(|change| change.identity).filter(|identity| !view.identities().contains_key(identity))
}
