//! The label sets that endpoints of this node have, and the fleet's numbers for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use identity::{Identity, LabelDigest, Labels};
use kvstore_claims::{ClaimError, IdentityAcquire, IdentityGrant, IdentityRelease};
use kvstore_schema::{Revision, record::ClaimState};
use node_facts::PendingOp;
use serde::{Deserialize, Serialize};

use crate::{IdentityView, limits::IDENTITY_GRACE, node::Node, tasks::Task};

/// In place of the revision of a reference that has not been written yet.
const UNREFERENCED: Revision = Revision(0);

/// What is being done about a label set. At most one machine at a time, as the protocols demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Work {
    /// Nothing: the reference is as it should be.
    None,
    /// The reference should be taken (again), and nobody has started yet.
    Wanted,
    /// The reference is being taken.
    Acquiring,
    /// The reference is being given back.
    Releasing,
}

/// One label set in use on this node, or in use until a while ago.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LocalIdentity {
    labels: Labels,
    /// Its number and the revision of this node's reference, once there is one.
    held: Option<(Identity, Revision)>,
    work: Work,
    /// Endpoints of this node that have it or wait for it.
    users: usize,
    /// Since when there are none.
    idle_since: Option<Duration>,
}

/// All of them. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Identities {
    sets: BTreeMap<LabelDigest, LocalIdentity>,
    /// Those whose [`Work`] is wanted.
    wanted: BTreeSet<LabelDigest>,
    /// Those without users, by the end of their grace.
    idle: BTreeSet<(Duration, LabelDigest)>,
}

impl Identities {
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        self.idle.first().map(|(at, _)| *at)
    }

    /// Numbers that this node uses, with their labels.
    pub(crate) fn held(&self) -> impl Iterator<Item = (Identity, &Labels)> {
        self.ours().map(|(identity, _, labels)| (identity, labels))
    }

    /// Those of them to which the store has a reference of this node.
    pub(crate) fn referenced(&self) -> impl Iterator<Item = (Identity, &Labels)> {
        let ours = self.ours().filter(|(_, reference, _)| *reference != UNREFERENCED);
        ours.map(|(identity, _, labels)| (identity, labels))
    }

    fn ours(&self) -> impl Iterator<Item = (Identity, Revision, &Labels)> {
        let ours = self.sets.values().filter(|set| set.work != Work::Releasing);
        ours.filter_map(|set| set.held.map(|(identity, reference)| (identity, reference, &set.labels)))
    }

    fn want(&mut self, digest: &LabelDigest) {
        if let Some(set) = self.sets.get_mut(digest) {
            match set.work {
                // One that runs is followed by another look when it ends.
                Work::Acquiring | Work::Releasing => {}
                Work::None | Work::Wanted => {
                    set.work = Work::Wanted;
                    self.wanted.insert(digest.clone());
                }
            }
        }
    }
}

impl Node {
    /// Counts one more user of a label set. Returns its number if that may be used at once; otherwise it comes by and
    /// by, from the store.
    pub(crate) fn use_identity(&mut self, digest: &LabelDigest, labels: &Labels) -> Option<Identity> {
        let known = self.referenced(digest).or_else(|| Some((self.known_number(digest)?, UNREFERENCED)));
        let set = self.identities.sets.entry(digest.clone()).or_insert_with(|| LocalIdentity {
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
            self.identities.idle.remove(&(since + IDENTITY_GRACE, digest.clone()));
        }
        // While it is given back the number is not ours, whatever the store still shows.
        let number = set.held.filter(|_| set.work != Work::Releasing).map(|(identity, _)| identity);
        let ours = set.held.is_some_and(|(_, revision)| revision > self.started_revision);
        if !ours {
            // Taken again even if a former agent's reference is there: its late release must not count.
            self.identities.want(digest);
        }
        number
    }

    /// The number of a live label set to which the store shows a reference of this node.
    fn referenced(&self, digest: &LabelDigest) -> Option<(Identity, Revision)> {
        let identity = self.view.identity_labels().get(digest)?.record.id;
        let live = self.view.identities().get(&identity)?.record.state == ClaimState::Live;
        let reference = self.view.refs(identity).get(&self.config.node)?;
        live.then_some((identity, reference.modified))
    }

    /// The number of a label set that others use and this node does not refer to yet. Taken before the reference is
    /// written, it is safe while the store is silent for less than half of the quarantine: whoever collects it has to
    /// see it unused for a whole quarantine first, and gossip tells of its use meanwhile.
    fn known_number(&self, digest: &LabelDigest) -> Option<Identity> {
        let silent = self.store.silent_for(self.now)?;
        if silent > self.config.quarantine / 2 {
            return None;
        }
        let recorded = self.view.identity_labels().get(digest).map(|entry| entry.record.id);
        if let Some(entry) = recorded.and_then(|number| self.view.identities().get(&number)) {
            return recorded.filter(|_| entry.record.state == ClaimState::Live);
        }
        // Allocated while this node did not hear the store.
        let told = self.peers.told_endpoints().find(|told| {
            told.op == PendingOp::Added
                && told.labels_digest == *digest
                && told.identity.is_fleet()
                && self.counting_labels(&told.labels).digest() == *digest
        });
        told.map(|told| told.identity).filter(|number| !self.view.identities().contains_key(number))
    }

    /// Numbers in use that the store may have no reference to yet: this node's, and those that gossip tells of.
    pub(crate) fn used_numbers(&self) -> BTreeSet<Identity> {
        let ours = self.identities.held().map(|(identity, _)| identity);
        let told = self.peers.told_endpoints().filter(|told| told.op == PendingOp::Added);
        ours.chain(told.map(|told| told.identity)).collect()
    }

    /// Counts one user less.
    pub(crate) fn drop_identity(&mut self, digest: &LabelDigest) {
        let now = self.now.monotonic;
        let Some(set) = self.identities.sets.get_mut(digest) else { return };
        set.users = set.users.saturating_sub(1);
        if set.users == 0 {
            set.idle_since = Some(now);
            self.identities.idle.insert((now + IDENTITY_GRACE, digest.clone()));
        }
    }

    /// Starts the machines that are due.
    pub(crate) fn pursue_identities(&mut self) {
        if !self.membership.registered() {
            return;
        }
        for digest in std::mem::take(&mut self.identities.wanted) {
            self.acquire(digest);
        }
        let now = self.now.monotonic;
        while let Some((_, digest)) = self.identities.idle.first().filter(|(at, _)| *at <= now).cloned() {
            self.identities.idle.pop_first();
            self.release(digest);
        }
    }

    fn acquire(&mut self, digest: LabelDigest) {
        let draw = self.rng.u64(..);
        let Some(set) = self.identities.sets.get_mut(&digest) else { return };
        let incarnation =
            self.membership.registered.as_ref().map_or(self.config.incarnation, |own| own.incarnation);
        match IdentityAcquire::start(
            &self.view,
            self.config.node.clone(),
            incarnation,
            set.labels.clone(),
            set.held.map(|(number, _)| number),
            draw,
        ) {
            Ok((machine, request)) => {
                set.work = Work::Acquiring;
                self.ask(request, Task::Acquire(digest, machine));
            }
            // Looked at again at the next event; the end of the restoration is one.
            Err(ClaimError::Restoring) => drop(self.identities.wanted.insert(digest)),
            Err(error) => self.on_acquired(&digest, Err(error)),
        }
    }

    fn release(&mut self, digest: LabelDigest) {
        let Some(set) = self.identities.sets.get_mut(&digest) else { return };
        match (set.work, set.held) {
            // Looked at again when that ends.
            (Work::Acquiring | Work::Releasing, _) => {}
            (Work::None | Work::Wanted, None) => drop(self.identities.sets.remove(&digest)),
            (Work::None | Work::Wanted, Some((identity, revision))) => {
                set.work = Work::Releasing;
                let incarnation = self
                    .membership
                    .registered
                    .as_ref()
                    .map_or(self.config.incarnation, |own| own.incarnation);
                let (machine, request) = IdentityRelease::start(
                    self.view.schema(),
                    self.config.node.clone(),
                    incarnation,
                    identity,
                    revision,
                );
                self.ask(request, Task::Release(digest, machine));
            }
        }
    }

    pub(crate) fn on_acquired(&mut self, digest: &LabelDigest, end: Result<IdentityGrant, ClaimError>) {
        let Some(set) = self.identities.sets.get_mut(digest) else { return };
        set.work = Work::None;
        // Its grace may have ended while this went on.
        if let Some(since) = set.idle_since {
            self.identities.idle.insert((since + IDENTITY_GRACE, digest.clone()));
        }
        match end {
            Ok(grant) => {
                set.held = Some((grant.identity, grant.ref_revision));
                self.identity_granted(digest, grant.identity);
            }
            Err(error) => {
                if matches!(error, ClaimError::NotRegistered { .. }) {
                    self.membership.registered = None;
                    self.identities.want(digest);
                }
                self.error(error.to_string());
                self.identity_refused(digest, &error);
            }
        }
    }

    pub(crate) fn on_released(&mut self, digest: &LabelDigest, end: Result<(), ClaimError>) {
        if let Err(error) = end {
            self.error(error.to_string());
        }
        let Some(set) = self.identities.sets.get_mut(digest) else { return };
        set.work = Work::None;
        set.held = None;
        if set.users > 0 {
            self.identities.want(digest);
        } else {
            self.identities.sets.remove(digest);
        }
    }

    /// The store has lost this node's references: those in use are taken again, with the same numbers.
    pub(crate) fn acquire_again(&mut self) {
        let now = self.now.monotonic;
        self.identities.sets.retain(|_, set| set.users > 0 || set.work != Work::Releasing);
        for (digest, set) in &mut self.identities.sets {
            set.held = set.held.map(|(number, _)| (number, UNREFERENCED));
            set.work = Work::None;
            if set.users > 0 {
                set.work = Work::Wanted;
                self.identities.wanted.insert(digest.clone());
            } else if let Some(since) = set.idle_since {
                self.identities.idle.insert(((since + IDENTITY_GRACE).max(now), digest.clone()));
            }
        }
    }

    /// A number came, went, or has another meaning. Endpoints of this node that have it with other labels must not bear it
    /// for another moment: until they have a new one, nothing is known of who they are.
    pub(crate) fn on_number(&mut self, number: Identity) {
        self.desired.numbers.insert(number);
        let Some(entry) = self.view.identities().get(&number) else { return };
        let held = |set: &LocalIdentity| set.held.is_some_and(|(held, _)| held == number);
        let taken =
            |(_, set): &(&LabelDigest, &LocalIdentity)| held(set) && set.labels != entry.record.labels;
        let Some(digest) = self.identities.sets.iter().find(taken).map(|(digest, _)| digest.clone()) else {
            return;
        };
        self.error(format!(
            "identity {number} was given to other labels; endpoints of this node get another"
        ));
        if let Some(set) = self.identities.sets.get_mut(&digest) {
            set.held = None;
        }
        self.identities.want(&digest);
        self.identity_lost(&digest);
    }

    /// This node's reference to a number came or went in the store.
    pub(crate) fn on_own_ref(&mut self, identity: Identity, gone: bool) {
        if !gone {
            // One that came late, of an attempt that was given up.
            return self.adopt_ref(identity);
        }
        let seen = self.view.revision();
        let lost = self.identities.sets.iter_mut().find_map(|(digest, set)| match set.held {
            Some((held, revision)) if held == identity && revision <= seen && set.work == Work::None => {
                Some(digest.clone())
            }
            _ => None,
        });
        if let Some(digest) = lost
            && self.identities.sets[&digest].users > 0
        {
            self.identities.want(&digest);
        }
    }

    /// References that a crash of a former agent has left behind: in use by nobody, given back after the
    /// grace, like any other.
    pub(crate) fn adopt_refs(&mut self) {
        let numbers = self.view.refs_by_node().get(&self.config.node).cloned().unwrap_or_default();
        numbers.into_iter().for_each(|identity| self.adopt_ref(identity));
    }

    /// Takes a reference that this node knows no use for into its care.
    fn adopt_ref(&mut self, identity: Identity) {
        let Some(entry) = self.view.identities().get(&identity) else { return };
        let labels = entry.record.labels.clone();
        let digest = labels.digest();
        if self.identities.sets.contains_key(&digest) {
            return;
        }
        let now = self.now.monotonic;
        let held = self.referenced(&digest);
        self.identities.idle.insert((now + IDENTITY_GRACE, digest.clone()));
        let idle = LocalIdentity { labels, held, work: Work::None, users: 0, idle_since: Some(now) };
        self.identities.sets.insert(digest, idle);
    }

    /// The labels that count for the identity.
    pub(crate) fn counting_labels(&self, labels: &Labels) -> Labels {
        self.label_filter.apply(labels)
    }

    /// Reserved and fleet identities, by number.
    pub fn identities(&self) -> Vec<IdentityView> {
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
        let fleet = self.view.identities().iter().map(|(id, entry)| {
            let digest = entry.record.labels.digest();
            IdentityView {
                id: *id,
                labels: entry.record.labels.clone(),
                reserved: None,
                quarantined: entry.record.state == ClaimState::Quarantined,
                nodes: self.view.refs(*id).keys().cloned().collect(),
                local_endpoints: self.identities.sets.get(&digest).map_or(0, |set| set.users),
                digest: Some(digest),
            }
        });
        reserved.chain(fleet).collect()
    }
}
