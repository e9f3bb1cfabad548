//! The store as the node sees it: listings, changes, silence; and which of them may be believed.

use std::time::Duration;

use kvstore_claims::{ChangeKind, ViewChange};
use kvstore_schema::{ListPage, key::ParsedKey, record::FleetRecord, record::Record};
use serde::{Deserialize, Serialize};

use crate::{KvUpdate, Now, node::Node};

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
            KvUpdate::Listed(page) => self.on_listed(&page),
            KvUpdate::Changed { events, revision }
                if self.store.suspect.is_none() && self.view.is_complete() =>
            {
                self.reconnected();
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

    fn on_listed(&mut self, page: &ListPage) {
        if let Err(reason) = self.check_listing(page) {
            if self.store.suspect.as_ref() != Some(&reason) {
                self.error(format!("store not believed: {reason}"));
            }
            self.store.suspect = Some(reason);
            self.store.connected = false;
            self.store.lost = None;
            return;
        }
        self.store.suspect = None;
        let changes = self.view.apply_list(page);
        self.reconnected();
        self.on_view_changes(changes);
        self.forget_kept();
        self.audit.after_listing = true;
        self.judge_first_listing();
    }

    /// Whether a listing continues what is known. A store that was emptied or restored must not tear this
    /// node down (P6): then nothing is taken from it, and the operator is told.
    fn check_listing(&self, page: &ListPage) -> Result<(), String> {
        let advice = "nothing is removed on its word; if it is the right one, take the agents one by one: stop, delete `snapshot` in node.state_dir, start";
        self.view.check_list(page).map_err(|error| format!("{error}; {advice}"))?;
        let Some(known) = &self.membership.fleet_id else { return Ok(()) };
        let key = self.view.schema().fleet();
        let Some(found) = page.entries.iter().find(|kv| kv.key == key) else {
            return Err(format!("the fleet's record {key} is gone; {advice}"));
        };
        match FleetRecord::decode(&found.value) {
            // A record that cannot be read is rejected alone, like any other.
            Err(_) => Ok(()),
            Ok(record) if record.fleet_id == *known => Ok(()),
            Ok(record) => Err(format!(
                "it holds another fleet of this name ({}, this node's is {known}); {advice}",
                record.fleet_id
            )),
        }
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
        if self.audit.trusted.is_some() || !self.audit.observed || !self.view.is_complete() {
            return;
        }
        let empty =
            self.reconciler.applied().nodes.is_empty() && self.reconciler.applied().endpoints.is_empty();
        self.audit.trusted = Some(empty || self.view.nodes().contains_key(&self.config.node));
        self.adopt_records();
    }

    pub(crate) fn on_view_changes(&mut self, changes: Vec<ViewChange>) {
        for ViewChange { key, kind } in changes {
            if kind == ChangeKind::Rejected {
                self.counters.records_rejected += 1;
                continue;
            }
            self.snapshots.fleet_changed |= !matches!(key, ParsedKey::Alive(_));
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
                ParsedKey::IdentityId(_) | ParsedKey::IdentityLabels(_) | ParsedKey::IdentityRef(..) => {}
                // Compared with what is known when the next listing comes, and by whoever joins.
                ParsedKey::Fleet | ParsedKey::Alive(_) => {}
                // Later issues.
                ParsedKey::Service(_) | ParsedKey::Vip(_) | ParsedKey::Policy(_) | ParsedKey::Keyring => {}
            }
        }
    }
}
