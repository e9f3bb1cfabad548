//! From a label set to its number: create both, or join the winner, or revive a quarantined number.
//!
//! Why reviving is safe (P3): a number is quarantined because kernels may still hold the number with its old
//! meaning. Reviving returns the number to the same label set, so its meaning never changes. A late deletion
//! fails, because reviving changed the revision that the deletion compares.

use std::collections::BTreeSet;

use identity::{Identity, LabelDigest, Labels, NodeName};
use kvstore_schema::{
    Condition, KvOp, KvRequest, Revision, Schema, Txn, TxnResponse,
    record::{ClaimState, IdentityIdRecord, IdentityLabelsRecord, IdentityRefRecord},
};
use serde::{Deserialize, Serialize};

use crate::{
    ClaimError, Entry, FleetView,
    fleet::SettledFleet,
    machine::{Machine, Next, Protocol, decode, got, mix, or_wait, put},
};

/// How many numbers the fleet can give out.
const NUMBERS: u64 = (Identity::FLEET_MAX.get() - Identity::FLEET_MIN.get() + 1) as u64;

/// Gets the number of a label set, and this node's reference to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdentityAcquire {
    schema: Schema,
    node: NodeName,
    reference: IdentityRefRecord,
    labels: Labels,
    digest: LabelDigest,
    /// The number that this node uses already, or knows: kept if it is free.
    known: Option<Identity>,
    /// Whether `known` may be made again while members restore: this node's endpoints have it, or the view remembers it
    /// from before the store was lost. A view that does not know of the loss may be behind in this too.
    outlasts_loss: bool,
    /// Numbers found taken that the view does not know of yet.
    taken: BTreeSet<Identity>,
    /// The number that the pending transaction is about.
    number: Identity,
    creating: bool,
    /// The guard of the pending transaction, if it has one.
    guard: Option<SettledFleet>,
}

/// A number that this node may use until it releases it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityGrant {
    /// The number.
    pub identity: Identity,
    /// The labels that it stands for.
    pub labels: Labels,
    /// The revision of this node's reference; [`crate::IdentityRelease`] needs it.
    pub ref_revision: Revision,
}

/// What is known of the label set, of one number and of the fleet, from the view or from an answer.
struct Facts {
    labels: Option<Entry<IdentityLabelsRecord>>,
    id: Option<Entry<IdentityIdRecord>>,
    /// Whether a free number may be taken.
    settled: Result<SettledFleet, ClaimError>,
}

impl IdentityAcquire {
    /// `used`: the number that this node's endpoints have already, if any. A store that has lost the number gets the same
    /// one again.
    ///
    /// `labels`: the labels that count for the identity, already filtered. `incarnation`: this agent's.
    ///
    /// The node must be registered. After a restart every number in use is acquired again: that rewrites
    /// the reference, so that a release which the former agent had sent cannot arrive late and delete it.
    ///
    /// # Errors
    /// When the view already shows that it cannot be done; [`ClaimError::Restoring`] when it cannot be done before the
    /// members of the fleet have restored what the store lost. A machine that meets a restoration later waits for its end.
    pub fn start(
        view: &FleetView,
        node: NodeName,
        incarnation: u64,
        labels: Labels,
        used: Option<Identity>,
        draw: u64,
    ) -> Result<(Machine<Self>, KvRequest), ClaimError> {
        let digest = labels.digest();
        let known = view.identity_labels().get(&digest).cloned();
        let number = known.as_ref().map_or(Identity::FLEET_MIN, |entry| entry.record.id);
        let mut this = Self {
            schema: view.schema().clone(),
            node,
            reference: IdentityRefRecord { incarnation, unknown: Default::default() },
            labels,
            digest,
            known: used.or(known.as_ref().map(|entry| entry.record.id)),
            outlasts_loss: used.is_some() || view.life().restoring,
            taken: BTreeSet::new(),
            number,
            creating: false,
            guard: None,
        };
        let id = view.identities().get(&number).cloned();
        let txn = match SettledFleet::known(view) {
            // The record reaches the view a moment after the node has joined.
            Err(ClaimError::NoFleet) => this.reads(Txn::then),
            settled => this.plan(Facts { labels: known, id, settled }, view, draw)?,
        };
        Ok(Machine::begin(this, txn))
    }

    /// The transaction that follows from these facts.
    fn plan(&mut self, facts: Facts, view: &FleetView, draw: u64) -> Result<Txn, ClaimError> {
        // Until it is settled which of two numbers the label set has, nobody refers to either.
        if view.is_disputed(&self.digest) {
            return Err(ClaimError::Restoring);
        }
        let Some(labels) = facts.labels else {
            let known = self.known.filter(|number| !self.taken.contains(number));
            // A label set keeps its number through a restoration. A free number may belong to a node that is away, and
            // that node may have another number for this label set.
            let guard = if known.is_some() && self.outlasts_loss { None } else { Some(facts.settled?) };
            self.number = match known {
                Some(number) => number,
                None => free_number(view, &self.taken, draw)?,
            };
            self.creating = true;
            self.guard = guard;
            return Ok(self.create());
        };
        self.creating = false;
        let contradiction =
            |key| ClaimError::Contradiction { labels: self.labels.clone(), identity: labels.record.id, key };
        if labels.record.labels != self.labels {
            return Err(contradiction(self.schema.identity_labels(&self.digest)));
        }
        if labels.record.id != self.number {
            self.number = labels.record.id;
            return Ok(self.reads(Txn::then));
        }
        if facts.id.as_ref().is_some_and(|id| id.record.labels != self.labels) {
            return Err(contradiction(self.schema.identity_labels(&self.digest)));
        }
        Ok(self.use_existing(labels.modified, facts.id))
    }

    fn create(&self) -> Txn {
        let labels_key = self.schema.identity_labels(&self.digest);
        let id_key = self.schema.identity_id(self.number);
        let labels = IdentityLabelsRecord {
            id: self.number,
            labels: self.labels.clone(),
            unknown: Default::default(),
        };
        let id = IdentityIdRecord {
            labels: self.labels.clone(),
            state: ClaimState::Live,
            unknown: Default::default(),
        };
        let mut txn = self.reads(Txn::otherwise);
        txn.conditions.extend(self.guard.as_ref().map(SettledFleet::condition));
        let txn = txn
            .when(Condition::Present(self.schema.node(&self.node)))
            .when(Condition::Absent(labels_key.clone()))
            .when(Condition::Absent(id_key.clone()))
            .when(Condition::RangeEmpty(self.schema.identity_refs(self.number)))
            .then(put(labels_key, &labels))
            .then(put(id_key, &id));
        self.with_ref(txn)
    }

    /// Adds the reference. Revives a quarantined number, and completes a number whose own record is missing.
    fn use_existing(&self, labels_revision: Revision, id: Option<Entry<IdentityIdRecord>>) -> Txn {
        let id_key = self.schema.identity_id(self.number);
        let mut txn = self
            .reads(Txn::otherwise)
            .when(Condition::Present(self.schema.node(&self.node)))
            .when(Condition::ModRevision(self.schema.identity_labels(&self.digest), labels_revision));
        let (unchanged, unknown, live) = match id {
            Some(id) => (
                Condition::ModRevision(id_key.clone(), id.modified),
                id.record.unknown,
                id.record.state == ClaimState::Live,
            ),
            None => (Condition::Absent(id_key.clone()), Default::default(), false),
        };
        txn = txn.when(unchanged);
        if !live {
            let record = IdentityIdRecord { labels: self.labels.clone(), state: ClaimState::Live, unknown };
            txn = txn.then(put(id_key, &record));
        }
        self.with_ref(txn)
    }

    fn with_ref(&self, txn: Txn) -> Txn {
        txn.then(put(self.schema.identity_ref(self.number, &self.node), &self.reference))
    }

    /// Reads all that [`Self::facts`] needs, in the branch that `add` adds to.
    fn reads(&self, add: fn(Txn, KvOp) -> Txn) -> Txn {
        [
            self.schema.node(&self.node),
            self.schema.identity_labels(&self.digest),
            self.schema.identity_id(self.number),
            self.schema.fleet(),
        ]
        .into_iter()
        .fold(Txn::new(), |txn, key| add(txn, KvOp::Get(key)))
    }

    fn facts(&self, answer: &TxnResponse, view: &FleetView) -> Result<Facts, ClaimError> {
        if got(answer, 0)?.is_none() {
            return Err(ClaimError::NotRegistered { node: self.node.clone() });
        }
        Ok(Facts {
            labels: got(answer, 1)?.map(entry).transpose()?,
            id: got(answer, 2)?.map(entry).transpose()?,
            settled: SettledFleet::read(view, got(answer, 3)?),
        })
    }

    fn decide(
        &mut self,
        answer: &TxnResponse,
        view: &FleetView,
        draw: u64,
    ) -> Result<Next<IdentityGrant>, ClaimError> {
        let only_read =
            answer.results.iter().all(|result| matches!(result, kvstore_schema::KvOpResult::Got(_)));
        if answer.succeeded && !only_read {
            return Ok(Next::Done(IdentityGrant {
                identity: self.number,
                labels: self.labels.clone(),
                ref_revision: answer.revision,
            }));
        }
        let facts = self.facts(answer, view)?;
        let guard_held = self.guard.as_ref().is_none_or(|guard| facts.settled.as_ref() == Ok(guard));
        if self.creating && facts.labels.is_none() && (guard_held || facts.id.is_some()) {
            self.taken.insert(self.number);
        }
        Ok(Next::Ask(self.plan(facts, view, draw)?))
    }
}

impl Protocol for IdentityAcquire {
    type Output = IdentityGrant;

    fn on_answer(&mut self, answer: &TxnResponse, view: &FleetView, draw: u64) -> Next<IdentityGrant> {
        or_wait(self.decide(answer, view, draw))
    }
}

fn entry<R: kvstore_schema::record::Record>(kv: &kvstore_schema::KeyValue) -> Result<Entry<R>, ClaimError> {
    Ok(Entry { record: decode(kv)?, created: kv.create_revision, modified: kv.mod_revision })
}

/// A number that neither the view nor `taken` has: the first free one behind a random place. (64 agents that draw at
/// random create 2,084 identities a second; with a shared counter, 57.)
fn free_number(view: &FleetView, taken: &BTreeSet<Identity>, draw: u64) -> Result<Identity, ClaimError> {
    let start = mix(draw) % NUMBERS;
    (0..NUMBERS)
        .map(|step| Identity::FLEET_MIN.get() + ((start + step) % NUMBERS) as u32)
        .filter_map(|number| Identity::new(number).ok())
        .find(|number| {
            !view.identities().contains_key(number)
                && view.refs(*number).is_empty()
                && !taken.contains(number)
        })
        .ok_or(ClaimError::IdentitiesExhausted { used: view.identities().len() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvstore_schema::{Key, KeyValue, ListPage, StoreIdentity};

    use super::*;

    fn kv(path: String, value: &str) -> KeyValue {
        KeyValue {
            key: Key::from_raw(format!("/warren/v1/t/{path}")),
            value: Arc::from(value.as_bytes()),
            create_revision: Revision(2),
            mod_revision: Revision(2),
            lease: None,
        }
    }

    #[test]
    fn free_number_is_the_first_behind_a_random_place() {
        let place = |draw: u64| Identity::FLEET_MIN.get() + (mix(draw) % NUMBERS) as u32;
        let id = |number: u32| Identity::new(number).unwrap();
        let mut view = FleetView::new(Schema::new(&"t".parse().unwrap()));
        let free = |view: &FleetView, taken: &[u32], draw| {
            free_number(view, &taken.iter().map(|number| id(*number)).collect(), draw).unwrap().get()
        };
        let first = place(7);
        assert_eq!(free(&view, &[], 7), first);
        assert_ne!(free(&view, &[], 8), first);
        // Taken as this machine has found, as a record, and as a reference that has lost its record.
        let record = kv(format!("identities/id/{}", first + 1), r#"{"v":1,"labels":{},"state":"live"}"#);
        let reference = kv(format!("identities/refs/{}/n1", first + 2), r#"{"v":1,"incarnation":1}"#);
        let entries = vec![record, reference];
        view.apply_list(ListPage { entries, revision: Revision(2), store: StoreIdentity(1), more: false });
        assert_eq!(free(&view, &[first], 7), first + 3);
        assert_eq!(free(&view, &[], 7), first);

        let last = Identity::FLEET_MAX.get();
        let draw = (0..).find(|draw| place(*draw) > last - 100).expect("some place is near the end");
        let rest: Vec<u32> = (place(draw)..=last).collect();
        assert_eq!(free(&view, &rest, draw), Identity::FLEET_MIN.get());
    }
}
