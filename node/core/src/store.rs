//! The store as the node sees it: listings, changes, silence; and which of them may be believed.

use std::time::Duration;

use kvstore_claims::{ChangeKind, Continuity, ViewChange};
use kvstore_schema::{KvEvent, KvRequest, ListPage, key::ParsedKey};
use serde::{Deserialize, Serialize};

use crate::{
    KvUpdate, Now,
    node::Node,
    restoring::{Founding, Restoring},
    tasks::Task,
};

/// What is known of the store itself. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct StoreState {
    /// The watch runs, and what it says continues what was known.
    pub connected: bool,
    /// Why it does not answer.
    pub lost: Option<String>,
    /// Why what it says is not believed: it was wiped, restored or replaced.
    pub suspect: Option<String>,
    /// When it last said something, since 1970.
    pub heard_at: Option<Duration>,
    /// It is to be founded anew.
    pub founding: Option<Founding>,
    /// It is being made whole again.
    pub restoring: Option<Restoring>,
    /// The whole prefix has been asked for, as the fleet's record went; what changes meanwhile.
    relisting: Option<Vec<KvEvent>>,
}

impl StoreState {
    /// Since when nothing is known of the store; `None` when nothing ever was. By the wall clock, which outlives a
    /// restart: one that went back makes the silence endless.
    pub(crate) fn silent_for(&self, now: Now) -> Option<Duration> {
        now.wall.checked_sub(self.heard_at?)
    }
}

impl Node {
    pub(crate) fn on_kv_update(&mut self, update: KvUpdate) {
        match update {
            KvUpdate::Listed(page) => self.on_listed(page),
            KvUpdate::Changed { events, .. } if self.store.relisting.is_some() => {
                self.store.relisting.iter_mut().for_each(|held| held.extend(events.iter().cloned()));
            }
            // Nobody of ours deletes the fleet's record: the store is being emptied, or another fleet makes room. Nothing
            // is deleted on its word; a list tells what is left.
            KvUpdate::Changed { events, .. } if self.fleet_moves(&events) => {
                self.relist(events);
            }
            KvUpdate::Changed { events, revision }
                if self.store.suspect.is_none() && self.view.is_listed() =>
            {
                let resumed = !self.store.connected;
                self.reconnected();
                if resumed {
                    self.doubt_store();
                }
                let changes = self.view.apply_events(&events);
                self.view.apply_progress(revision);
                self.on_view_changes(changes);
                self.forget_kept();
            }
            // Changes of a store that is not believed, or without the list that they build on.
            KvUpdate::Changed { .. } => {}
            KvUpdate::Lost(reason) => {
                if self.store.connected {
                    self.counters.store_lost += 1;
                    self.store.connected = false;
                    // What gossip says of nodes and blocks counts from now on.
                    self.touch_all_peers();
                }
                self.store.lost = Some(reason);
            }
        }
    }

    /// Asks for the whole prefix; `events`: changes that wait for it.
    pub(crate) fn relist(&mut self, events: Vec<KvEvent>) {
        self.store.relisting = Some(events);
        self.ask(KvRequest::List(self.view.schema().root()), Task::Relist);
    }

    /// Whether the fleet's record is deleted, or, of a store that is not believed, changed in any way; or whether another
    /// member has founded the store anew, which this node took for the one that it knew.
    fn fleet_moves(&self, events: &[KvEvent]) -> bool {
        let key = self.view.schema().fleet();
        let mut concerned = events.iter().filter(|event| *event.key() == key);
        if self.store.suspect.is_some() {
            return concerned.next().is_some();
        }
        self.view.is_listed()
            && self.membership.fleet_id.is_some()
            && concerned.any(|event| match event {
                KvEvent::Delete { .. } => true,
                KvEvent::Put(fleet) => !self.view.life().restoring && self.begins_life(fleet),
            })
    }

    /// The answer to a list that this node asked for.
    pub(crate) fn on_relisted(&mut self, page: ListPage) {
        let mut held = self.store.relisting.take().unwrap_or_default();
        let listed = page.revision;
        held.retain(|event| event.mod_revision() > listed);
        self.on_listed(page);
        let revision = held.last().map_or(listed, KvEvent::mod_revision).max(listed);
        self.on_kv_update(KvUpdate::Changed { events: held, revision });
    }

    fn on_listed(&mut self, page: ListPage) {
        self.store.relisting = None;
        let continuity = match self.view.judge(&page, self.membership.fleet_id.as_deref()) {
            Ok(continuity) => continuity,
            Err(other) => {
                let reason = format!(
                    "{other}; nothing is removed on its word, and nothing written there: see that this node's etcd endpoints and fleet name are right"
                );
                if self.store.suspect.as_ref() != Some(&reason) {
                    self.error(format!("store not believed: {reason}"));
                }
                self.store.suspect = Some(reason);
                self.store.connected = false;
                self.store.lost = None;
                return;
            }
        };
        self.store.suspect = None;
        self.doubt_ends();
        self.begin_life(&page, &continuity);
        let changes = self.view.follow(page, &continuity, &self.config.node);
        self.reconnected();
        self.on_view_changes(changes);
        self.forget_kept();
        self.ipam.changed = true;
        if continuity != Continuity::Same {
            self.touch_all_peers();
            self.look_at_own_records();
        }
        self.audit.after_listing = true;
        self.judge_first_listing();
    }

    fn reconnected(&mut self) {
        self.store.lost = None;
        self.store.heard_at = Some(self.now.wall);
        if !self.store.connected {
            self.store.connected = true;
            self.touch_all_peers();
            self.resume_all();
        }
    }

    /// Once both the kernel and a whole listing are known: whether the listing may remove what the kernel
    /// has. A store that never heard of this node, while the node's kernel holds a fleet, is not the store
    /// that this kernel was made from.
    pub(crate) fn judge_first_listing(&mut self) {
        if self.audit.trusted.is_some() || !self.audit.observed || !self.view.is_listed() {
            return;
        }
        let empty =
            self.reconciler.applied().nodes.is_empty() && self.reconciler.applied().endpoints.is_empty();
        let known = self.snapshots.restored || self.view.nodes().contains_key(&self.config.node);
        self.audit.trusted = Some(empty || known);
        self.adopt_records();
    }

    pub(crate) fn on_view_changes(&mut self, changes: Vec<ViewChange>) {
        for ViewChange { key, kind } in changes {
            if kind == ChangeKind::Rejected {
                self.counters.records_rejected += 1;
                continue;
            }
            self.snapshots.fleet_changed |= !matches!(key, ParsedKey::Alive(_));
            if !matches!(key, ParsedKey::Alive(_) | ParsedKey::Mark) {
                self.mark_later();
            }
            let gone = kind == ChangeKind::Gone;
            match key {
                ParsedKey::Node(node) if node == self.config.node => self.on_own_record(gone),
                ParsedKey::Node(node) => self.on_peer_record(node, gone),
                ParsedKey::Cidr(cidr) => {
                    self.ipam.changed = true;
                    self.desired.prefixes.insert(cidr);
                }
                ParsedKey::Endpoint(node, ip) if node == self.config.node => self.on_own_endpoint_record(ip),
                ParsedKey::Endpoint(node, ip) => {
                    self.confirm_pending(&node, ip);
                    self.desired.records.insert((node, ip));
                }
                ParsedKey::IdentityRef(identity, node) if node == self.config.node => {
                    self.on_own_ref(identity, gone);
                }
                ParsedKey::IdentityId(number) => self.on_number(number),
                ParsedKey::IdentityLabels(_) | ParsedKey::IdentityRef(..) => {}
                ParsedKey::Fleet => self.on_fleet_record(),
                ParsedKey::Alive(_) => {}
                ParsedKey::Mark => self.on_mark(),
                ParsedKey::Service(name) => {
                    self.services.touched.insert(name);
                    // Nobody but the store tells of it again.
                    self.snapshots.own_changed = true;
                }
                // A claim says nothing that its service does not say.
                ParsedKey::ServiceClaim(_) => {}
                // Later issues.
                ParsedKey::Policy(_) | ParsedKey::Keyring => {}
            }
        }
    }
}
