//! Bugs of a whole fleet, planted between nodes and world: the checkers have to find each of them.
//!
//! Each corrupts what passes as a bug in the node or its shell would. The protocols have bugs of their own to find, in
//! `kvstore-claims`.

use std::time::Duration;

use datapath_plan::Observed;
use kvstore_schema::{
    Condition, KvEvent, KvOp, KvOpResult, KvRequest, KvResponse, Revision, Schema, Txn, TxnResponse,
    key::ParsedKey,
    record::{CidrRecord, FleetRecord, Record},
};
use kvstore_store::MemState;
use node_core::{Event, GossipUpdate, KvUpdate, Node, NodeConfig};
use node_facts::Liveness;

/// What one shell, or the node inside, does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A number is given to other labels as soon as nobody uses it.
    NoQuarantine,
    /// An address is given to the next endpoint at once.
    NoRest,
    /// A part of a listing is taken for all of it.
    PruneBeforeComplete,
    /// A block may get a second owner.
    ClaimOverClaim,
    /// A label set may get a second number.
    CreateOverLabels,
    /// Gossip that is out of date counts.
    LateGossip,
    /// What gossip tells no more is gone, though the store is not known as far.
    WithdrawnIsGone,
    /// What the kernel had before the agent is not looked at.
    NothingAdopted,
    /// What the former agent had sent is sent again by the next one, and conditions do not count any more.
    UnfencedQueue,
    /// The snapshot of any node is believed.
    ForeignSnapshot,
    /// One change is lost between two others.
    EventLost,
    /// Changes that come again, or out of order, count again.
    OldEventCounts,
    /// A store that went back, or is another one, is believed.
    BackwardsBelieved,
    /// Who seems dead is removed.
    RemovedByLiveness,
    /// A plan that failed in part is taken for done.
    PartIsWhole,
    /// A request whose outcome is unknown is taken for carried out.
    AmbiguousIsDone,
    /// What the store has lost is written over whatever is there by now.
    RestoreOverAnything,
    /// The number of an older copy stays beside the one that is restored.
    CopiedNumberStays,
    /// A claim that is made again is a new one.
    ClaimAgeLost,
    /// Revisions are compared across lives.
    RecordedLifeLost,
    /// A store that is founded anew counts as whole at once.
    SettledAtOnce,
    /// Nobody marks the store.
    Unmarked,
}

/// All of them.
pub const ALL: [Bug; 16] = [
    Bug::NoQuarantine,
    Bug::NoRest,
    Bug::PruneBeforeComplete,
    Bug::ClaimOverClaim,
    Bug::CreateOverLabels,
    Bug::LateGossip,
    Bug::WithdrawnIsGone,
    Bug::NothingAdopted,
    Bug::UnfencedQueue,
    Bug::ForeignSnapshot,
    Bug::EventLost,
    Bug::OldEventCounts,
    Bug::BackwardsBelieved,
    Bug::RemovedByLiveness,
    Bug::PartIsWhole,
    Bug::AmbiguousIsDone,
];

/// Those that only show when the store is lost, each with the history to look at first: it was found there.
pub const OF_LIVES: [(Bug, u64); 6] = [
    (Bug::RestoreOverAnything, 51),
    (Bug::CopiedNumberStays, 51),
    (Bug::ClaimAgeLost, 0),
    (Bug::RecordedLifeLost, 1),
    (Bug::SettledAtOnce, 0),
    (Bug::Unmarked, 8),
];

impl Bug {
    pub(crate) fn in_config(self, config: &mut NodeConfig) {
        match self {
            Self::NoQuarantine => config.quarantine = Duration::ZERO,
            Self::NoRest => config.address_cooldown = Duration::ZERO,
            _ => {}
        }
    }

    /// Takes conditions away from what a node asks of the store.
    pub(crate) fn in_request(self, schema: &Schema, txn: &mut Txn) {
        let is = |key: &kvstore_schema::Key, part: &str| {
            key.as_str().starts_with(&format!("{}{part}/", schema.root().as_str()))
        };
        // All others read what stood in their way.
        let restores = txn.otherwise.is_empty();
        txn.conditions.retain(|condition| match (self, condition) {
            (Self::ClaimOverClaim, Condition::Absent(key)) => !is(key, "cidrs"),
            (Self::CreateOverLabels, Condition::Absent(key)) => !is(key, "identities/labels"),
            (Self::RestoreOverAnything, Condition::Absent(key) | Condition::ModRevision(key, _)) => {
                !restores || *key == schema.fleet()
            }
            _ => true,
        });
        if self == Self::CopiedNumberStays {
            let moves =
                txn.then.iter().any(|op| matches!(op, KvOp::Put { key, .. } if is(key, "identities/id")));
            txn.then.retain(|op| !matches!(op, KvOp::Delete(key) if moves && is(key, "identities/id")));
        }
        if self == Self::Unmarked {
            txn.then.retain(|op| !matches!(op, KvOp::Put { key, .. } if *key == schema.mark()));
        }
        for op in &mut txn.then {
            let KvOp::Put { key, value, .. } = op else { continue };
            if self == Self::ClaimAgeLost
                && is(key, "cidrs")
                && let Ok(claim) = CidrRecord::decode(value)
            {
                *value = CidrRecord { since: None, ..claim }.encode();
            }
            if self == Self::SettledAtOnce
                && *key == schema.fleet()
                && let Ok(mut fleet) = FleetRecord::decode(value)
            {
                fleet.life.restoring = false;
                *value = fleet.encode();
            }
        }
    }

    /// With [`Bug::UnfencedQueue`]: what the agent had sent in its life is sent again when it dies.
    pub(crate) fn in_queue(self, requests: &mut Vec<KvRequest>, sent: &mut Vec<Txn>) {
        let sent = std::mem::take(sent).into_iter();
        if self == Self::UnfencedQueue {
            requests.extend(sent.map(|txn| KvRequest::Txn(Txn { conditions: Vec::new(), ..txn })));
        }
    }

    /// With [`Bug::AmbiguousIsDone`]: the answer to a request that never arrived.
    pub(crate) fn done(request: Option<KvRequest>, store: &MemState) -> Option<KvResponse> {
        let Some(KvRequest::Txn(txn)) = request else { return None };
        let results = txn.then.iter().map(|op| match op {
            KvOp::Put { .. } => KvOpResult::Put,
            KvOp::Delete(_) => KvOpResult::Deleted(1),
            KvOp::Get(_) => KvOpResult::Got(None),
        });
        let results = results.collect();
        Some(KvResponse::Txn(TxnResponse { succeeded: true, revision: store.revision(), results }))
    }

    /// What the node hears instead of an event.
    ///
    /// `memory`: what the bug remembers of earlier events.
    pub(crate) fn in_event(
        self,
        config: &NodeConfig,
        node: &Node,
        memory: &mut Vec<KvEvent>,
        mut event: Event,
    ) -> Vec<Event> {
        match (self, &mut event) {
            (Self::PruneBeforeComplete, Event::Kv(KvUpdate::Listed(page))) => {
                let half = page.entries.len() / 2;
                page.entries.truncate(half.max(1));
            }
            (Self::ForeignSnapshot, Event::Started { snapshot: Some(snapshot), .. }) => {
                snapshot.fleet = config.fleet.clone();
                snapshot.node = config.node.clone();
                snapshot.machine_id = config.machine_id.clone();
            }
            (Self::EventLost, Event::Kv(KvUpdate::Changed { events, revision })) if revision.0 % 7 == 0 => {
                events.pop();
            }
            (Self::BackwardsBelieved, Event::Kv(KvUpdate::Listed(page))) => {
                let known = node.status().store.revision;
                if let Some(snapshot) = node.snapshot() {
                    page.store = snapshot.store;
                    let fleet = Schema::new(&config.fleet).fleet();
                    page.entries.retain(|kv| kv.key != fleet);
                    page.entries.push(fleet_of(&fleet, &snapshot.fleet_id, config));
                    page.entries.sort_by(|a, b| a.key.cmp(&b.key));
                }
                page.revision = Revision(page.revision.0.max(known));
            }
            (
                Self::RemovedByLiveness,
                Event::Gossip(GossipUpdate::Live { node: dead, liveness: Liveness::Dead }),
            ) => {
                let key = Schema::new(&config.fleet).node(dead);
                let revision = Revision(node.status().store.revision);
                let gone = KvEvent::Delete { key, mod_revision: revision.next() };
                return vec![event, Event::Kv(KvUpdate::Changed { events: vec![gone], revision })];
            }
            (Self::PartIsWhole, Event::Applied(outcome)) => outcome.failures.clear(),
            (Self::OldEventCounts, Event::Kv(KvUpdate::Changed { events, revision })) => {
                let schema = Schema::new(&config.fleet);
                let endpoint =
                    |event: &&KvEvent| matches!(schema.parse(event.key()), Ok(ParsedKey::Endpoint(..)));
                memory.extend(events.iter().filter(endpoint).cloned());
                let old = memory.get(revision.0 as usize % (memory.len() + 3)).cloned();
                if let Some(KvEvent::Put(mut old)) = old {
                    old.mod_revision = *revision;
                    events.push(KvEvent::Put(old));
                }
            }
            (Self::WithdrawnIsGone, Event::Gossip(GossipUpdate::Facts(facts))) => {
                (facts.recorded_life, facts.recorded_revision) = (0, 0);
            }
            (Self::RecordedLifeLost, Event::Gossip(GossipUpdate::Facts(facts))) => facts.recorded_life = 0,
            (Self::NothingAdopted, Event::Observed(Ok(observed))) if !node.status().plan.observed => {
                *observed = Observed::default();
            }
            _ => {}
        }
        vec![event]
    }
}

fn fleet_of(key: &kvstore_schema::Key, fleet_id: &str, config: &NodeConfig) -> kvstore_schema::KeyValue {
    let record = FleetRecord {
        fleet_id: fleet_id.to_owned(),
        pools: config.pools.clone(),
        service_pools: config.service_pools.clone(),
        block_prefix_v4: config.block_prefix_v4,
        block_prefix_v6: config.block_prefix_v6,
        tunnel_port: config.tunnel_port,
        life: Default::default(),
        unknown: Default::default(),
    };
    let revision = Revision(1);
    kvstore_schema::KeyValue {
        key: key.clone(),
        value: record.encode(),
        create_revision: revision,
        mod_revision: revision,
        lease: None,
    }
}
