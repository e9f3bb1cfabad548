//! The store's listings, changes and silence; and whether they are believed.

use std::time::Duration;

use kvstore_claims::{Continuity, ViewChange};
use kvstore_schema::{KvEvent, KvOutcome, KvResponse, ListPage, Revision};
use serde::{Deserialize, Serialize};

use super::Fleet;
use crate::{KvUpdate, context::Context, limits::RELIST_RETRY, requests::Task};

/// What is known of the store itself. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct StoreState {
    pub connected: bool,
    pub lost: Option<String>,
    /// Why the store is not believed: it is another fleet's.
    pub suspect: Option<String>,
    pub heard_at: Option<Duration>,
    /// The monotonic time of the last answer, or of the start from a snapshot: it runs on when the wall clock is set back.
    pub heard_monotonic: Duration,
    /// The whole prefix has been requested because the fleet's record changed; the changes that arrive meanwhile.
    relisting: Option<Vec<KvEvent>>,
}

/// What an update of the watch means.
pub(crate) enum Heard {
    /// Nothing that anybody has to act on.
    Nothing,
    /// These records changed.
    Changed(Vec<ViewChange>),
    /// A complete listing, which has to be judged first.
    Listed(ListPage),
}

impl Fleet {
    pub(crate) fn on_update(&mut self, cx: &mut Context, update: KvUpdate) -> Heard {
        match update {
            KvUpdate::Listed(page) => return Heard::Listed(page),
            KvUpdate::Changed { events, .. } if self.store.relisting.is_some() => {
                self.store.relisting.iter_mut().for_each(|held| held.extend(events.iter().cloned()));
            }
            // No member deletes the fleet's record: the store is being emptied, or makes room for another fleet. Nothing is
            // deleted because of that; a listing shows what is left.
            KvUpdate::Changed { events, .. } if self.fleet_record_moves(&events) => self.relist(cx, events),
            KvUpdate::Changed { events, revision }
                if self.store.suspect.is_none() && self.view.is_listed() =>
            {
                let resumed = !self.store.connected;
                self.reconnected(cx);
                if resumed {
                    self.doubt(cx);
                }
                let changes = self.view.apply_events(&events);
                self.view.apply_progress(revision);
                return Heard::Changed(changes);
            }
            // Changes of a store that is not believed, or that build on a listing which was not seen.
            KvUpdate::Changed { .. } => {}
            KvUpdate::Lost(reason) => {
                if self.store.connected {
                    cx.counters.store_lost += 1;
                    self.store.connected = false;
                    // From now on gossip counts for nodes and blocks.
                    cx.changes.all_peers = true;
                }
                self.store.lost = Some(reason);
            }
        }
        Heard::Nothing
    }

    /// Requests the whole prefix; `events` are changes that are applied after it.
    pub(super) fn relist(&mut self, cx: &mut Context, events: Vec<KvEvent>) {
        self.store.relisting = Some(events);
        cx.ask(self.listing(), Task::Relist);
    }

    /// Whether the fleet's record is deleted; or, of a store that is not believed, changed in any way; or whether another
    /// member has founded the store anew while this node took it for the one that it knew.
    fn fleet_record_moves(&self, events: &[KvEvent]) -> bool {
        let key = self.view.schema().fleet();
        let mut concerned = events.iter().filter(|event| *event.key() == key);
        if self.store.suspect.is_some() {
            return concerned.next().is_some();
        }
        self.view.is_listed()
            && self.fleet_id().is_some()
            && concerned.any(|event| match event {
                KvEvent::Delete { .. } => true,
                KvEvent::Put(fleet) => !self.view.life().restoring && self.is_other_generation(fleet),
            })
    }

    /// The answer to a listing that this node requested: the page, and the changes to be applied after it.
    pub(crate) fn on_relisted(
        &mut self,
        cx: &mut Context,
        outcome: KvOutcome,
    ) -> Option<(ListPage, KvUpdate)> {
        let Ok(KvResponse::List(page)) = outcome else {
            cx.ask_later(RELIST_RETRY, self.listing(), Task::Relist);
            return None;
        };
        let listed: Revision = page.revision;
        let mut events = self.store.relisting.take().unwrap_or_default();
        events.retain(|event| event.mod_revision() > listed);
        let revision = events.last().map_or(listed, KvEvent::mod_revision).max(listed);
        Some((page, KvUpdate::Changed { events, revision }))
    }

    /// What a listing is to what was known. `None`: it is another fleet's and is not used.
    pub(crate) fn judge(&mut self, cx: &mut Context, page: &ListPage) -> Option<Continuity> {
        self.store.relisting = None;
        match self.view.judge(page, self.fleet_id()) {
            Ok(continuity) => {
                self.store.suspect = None;
                self.marking.doubt_ends();
                Some(continuity)
            }
            Err(other) => {
                let reason = format!(
                    "{other}; nothing is removed because of it and nothing is written there: check this node's etcd endpoints and fleet name"
                );
                if self.store.suspect.as_ref() != Some(&reason) {
                    cx.error(format!("store not believed: {reason}"));
                }
                self.store.suspect = Some(reason);
                self.store.connected = false;
                self.store.lost = None;
                None
            }
        }
    }

    /// Takes over a listing that was judged.
    pub(crate) fn follow(
        &mut self,
        cx: &mut Context,
        page: ListPage,
        continuity: &Continuity,
    ) -> Vec<ViewChange> {
        let changes = self.view.follow(page, continuity, &self.node);
        self.reconnected(cx);
        changes
    }

    fn reconnected(&mut self, cx: &mut Context) {
        self.store.lost = None;
        self.store.heard_at = Some(cx.now.wall);
        self.store.heard_monotonic = cx.now.monotonic;
        if !self.store.connected {
            self.store.connected = true;
            cx.changes.all_peers = true;
            self.resume_all(cx);
        }
    }
}
