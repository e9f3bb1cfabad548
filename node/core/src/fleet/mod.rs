//! The fleet and its store: what the store says, whether it is believed, and this node's membership.
//!
//! `store` follows the watch, `mark` notices an older copy behind a watch that resumed, `membership` joins and registers,
//! `restoration` writes again what a store has lost, `collect` plans garbage collection.

mod collect;
mod mark;
mod membership;
mod restoration;
mod store;

use std::{net::IpAddr, sync::Arc, time::Duration};

use identity::{Identity, Labels, NodeName};
use kvstore_claims::{Entry, FleetView, ViewChange};
use kvstore_schema::{
    KvRequest, Revision, Schema,
    record::{ClaimEpoch, EndpointRecord},
};
use serde::{Deserialize, Serialize};

use self::{
    collect::Collection,
    mark::Marking,
    membership::Membership,
    restoration::{Founding, Restoration},
    store::StoreState,
};
use crate::{NodeConfig, Now, Snapshot, context::Context, requests::Task};
pub(crate) use membership::{JoinEnd, Own, on_removed};
pub(crate) use store::Heard;

/// Everything that belongs to the fleet and its store. One per node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fleet {
    /// This node's name.
    node: NodeName,
    /// The records of the fleet, as the store or a snapshot has told them.
    view: FleetView,
    store: StoreState,
    membership: Membership,
    marking: Marking,
    /// The next generation of the store, while this node tries to found it.
    founding: Option<Founding>,
    /// The work on a store that has lost records, while it lasts.
    restoration: Option<Restoration>,
    collection: Collection,
    /// The store's revision when its records were first taken over: references from before are a former agent's.
    started_revision: Revision,
}

impl Fleet {
    pub(crate) fn new(config: &NodeConfig) -> Self {
        Self {
            node: config.node.clone(),
            view: FleetView::new(Schema::new(&config.fleet)),
            store: StoreState::default(),
            membership: Membership::default(),
            marking: Marking::default(),
            founding: None,
            restoration: None,
            collection: Collection::new(config.quarantine),
            started_revision: Revision::default(),
        }
    }

    /// This node's name.
    pub(crate) fn node(&self) -> &NodeName {
        &self.node
    }

    pub(crate) fn view(&self) -> &FleetView {
        &self.view
    }

    /// Whether the watch runs and continues what was known.
    pub(crate) fn is_connected(&self) -> bool {
        self.store.connected
    }

    /// Why the store does not answer.
    pub(crate) fn lost(&self) -> Option<&String> {
        self.store.lost.as_ref()
    }

    /// Why the store is not believed.
    pub(crate) fn suspect(&self) -> Option<&String> {
        self.store.suspect.as_ref()
    }

    /// When the store last answered, since 1970.
    pub(crate) fn heard_at(&self) -> Option<Duration> {
        self.store.heard_at
    }

    /// For how long the store has been silent; `None` if it was never heard. The longer of both clocks counts: the wall
    /// clock continues over a restart, and the monotonic clock cannot be set back. If the wall clock shows a time before
    /// the last answer, nothing is known.
    pub(crate) fn silent_for(&self, now: Now) -> Option<Duration> {
        let by_wall = now.wall.checked_sub(self.store.heard_at?)?;
        Some(by_wall.max(now.monotonic.saturating_sub(self.store.heard_monotonic)))
    }

    /// Whether this node takes part in restoring a store that has lost records.
    pub(crate) fn is_restoring(&self) -> bool {
        self.restoration.is_some()
    }

    /// Up to which point of which generation the store is known.
    pub(crate) fn seen(&self) -> ClaimEpoch {
        ClaimEpoch { life: self.view.life().number, revision: self.view.revision() }
    }

    /// Whether gossip counts for nodes and blocks: only while the store is silent or not completely known.
    pub(crate) fn gossip_counts(&self) -> bool {
        !self.store.connected || !self.view.is_complete()
    }

    /// The record of an endpoint.
    pub(crate) fn record(&self, node: &NodeName, ip: IpAddr) -> Option<&Entry<Arc<EndpointRecord>>> {
        self.view.endpoints().get(node)?.get(&ip)
    }

    /// The records of a node's endpoints, by address.
    pub(crate) fn records(
        &self,
        node: &NodeName,
    ) -> impl Iterator<Item = (IpAddr, &Entry<Arc<EndpointRecord>>)> + use<'_> {
        self.view.endpoints().get(node).into_iter().flatten().map(|(ip, entry)| (*ip, entry))
    }

    /// The labels that an identity stands for, by its record.
    pub(crate) fn labels_of(&self, identity: Identity) -> Option<&Labels> {
        self.view.identities().get(&identity).map(|entry| &entry.record.labels)
    }

    /// References with this revision or an older one were written by a former agent.
    pub(crate) fn started_revision(&self) -> Revision {
        self.started_revision
    }

    /// The records are taken over now, at the revision that is known.
    pub(crate) fn take_over(&mut self) {
        self.started_revision = self.view.revision();
    }

    /// Takes a former agent's snapshot as what is known until the store answers. Returns the records.
    pub(crate) fn restore(&mut self, now: Now, snapshot: &Snapshot) -> Vec<ViewChange> {
        self.store.heard_at = Some(snapshot.heard_at);
        self.store.heard_monotonic = now.monotonic;
        self.membership.restore(snapshot.fleet_id.clone());
        let schema = self.view.schema().clone();
        let entries = snapshot.entries(&schema);
        self.view.remember(snapshot.store, snapshot.life, snapshot.revision, entries)
    }

    /// Sends requests that have waited long enough. Not while the store is away: another store may come back in its place,
    /// which only its listing shows.
    pub(crate) fn resume_due(&self, cx: &mut Context) {
        while self.store.connected
            && let Some((request, task)) = cx.requests.take_due(cx.now.monotonic)
        {
            self.resume(cx, request, task);
        }
    }

    /// The store is back: sends all requests that wait.
    fn resume_all(&self, cx: &mut Context) {
        for (request, task) in cx.requests.take_waiting() {
            self.resume(cx, request, task);
        }
    }

    fn resume(&self, cx: &mut Context, request: KvRequest, task: Task) {
        // A listing may have answered the question meanwhile.
        if !matches!(task, Task::ReadMark(number) if !self.marking.is_open(number)) {
            cx.ask(request, task);
        }
    }

    fn listing(&self) -> KvRequest {
        KvRequest::List(self.view.schema().root())
    }

    /// When something of the fleet is due.
    pub(crate) fn next_wake(&self) -> impl Iterator<Item = Duration> + use<> {
        let restoration = self.restoration.as_ref();
        let next = [
            Some(self.membership.retry_at()),
            restoration.and_then(Restoration::next_wake),
            restoration.map(Restoration::settle_at),
            self.marking.next_wake(),
            Some(self.collection.next_wake()),
        ];
        next.into_iter().flatten()
    }
}
