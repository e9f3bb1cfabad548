//! What the store says, routed to the components: listings, changes, and answers to requests.

use kvstore_claims::{ChangeKind, Continuity, ViewChange};
use kvstore_schema::{KvOutcome, ListPage, Revision, key::ParsedKey, record::ClaimEpoch};

use super::{Node, allocators, own};
use crate::{
    KvId, KvUpdate,
    endpoints::Allocators,
    fleet::{self, Heard, JoinEnd, Own},
    requests::Task,
    services,
};

impl Node {
    pub(super) fn on_kv_update(&mut self, update: KvUpdate) {
        match self.fleet.on_update(&mut self.cx, update) {
            Heard::Nothing => {}
            Heard::Changed(changes) => self.on_view_changes(changes),
            Heard::Listed(page) => self.on_listed(page),
        }
    }

    fn on_listed(&mut self, page: ListPage) {
        let Some(continuity) = self.fleet.judge(&mut self.cx, &page) else { return };
        if continuity != Continuity::Same {
            self.begin_store_generation(&page, &continuity);
        }
        let changes = self.fleet.follow(&mut self.cx, page, &continuity);
        self.on_view_changes(changes);
        self.cx.changes.claims = true;
        if continuity != Continuity::Same {
            self.cx.changes.all_peers = true;
            self.endpoints.compare_records(&mut self.cx, &self.fleet);
        }
        self.audit.after_listing();
        self.judge_first_listing();
    }

    /// The store was emptied or replaced: what was requested of the former one does not count, and everything that this
    /// node owns is written again. Comes before the view follows the listing.
    fn begin_store_generation(&mut self, page: &ListPage, continuity: &Continuity) {
        let cx = &mut self.cx;
        self.fleet.begin_generation(cx, page, continuity);
        self.services.abandon_writes(cx);
        cx.abandon_requests();
        self.peers.keep_until(ClaimEpoch { life: u64::MAX, revision: Revision::default() });
        self.ipam.claim_again(cx, &self.fleet);
        self.identities.acquire_again(cx.now.monotonic);
        self.records.write_again();
    }

    /// Takes the next step towards a store that has everything again.
    pub(super) fn pursue_restoration(&mut self) {
        if self.fleet.end_restoration() {
            // From now on gossip does not count for blocks.
            self.cx.changes.all_peers = true;
            let seen = self.fleet.seen();
            self.peers.keep_until(seen);
            self.peers.forget_kept(&mut self.cx, seen);
            self.endpoints.name_all(&mut self.cx, &mut allocators!(self));
            self.endpoints.compare_records(&mut self.cx, &self.fleet);
        }
        let changes = self.fleet.pursue_restoration(&mut self.cx);
        self.on_view_changes(changes);
    }

    /// Once both the kernel and a complete listing are known: whether the listing may remove what the kernel has. A store
    /// that never heard of this node, while the node's kernel holds a fleet, is not the store that this kernel was made
    /// from.
    pub(super) fn judge_first_listing(&mut self) {
        let cx = &mut self.cx;
        let view = self.fleet.view();
        if cx.startup.is_over() || !cx.startup.kernel_read || !view.is_listed() {
            return;
        }
        let applied = cx.kernel.applied();
        let empty = applied.nodes.is_empty() && applied.endpoints.is_empty();
        let known = cx.startup.snapshot_used || view.nodes().contains_key(self.fleet.node());
        cx.startup.listing_trusted = Some(empty || known);
        self.fleet.take_over();
        self.endpoints.name_all(cx, &mut allocators!(self));
        self.ipam.forfeit_blocks(cx, &self.fleet);
        self.endpoints.compare_records(cx, &self.fleet);
        self.identities.adopt_references(cx, &self.fleet);
    }

    /// Tells each component which of its records changed.
    pub(super) fn on_view_changes(&mut self, changes: Vec<ViewChange>) {
        for ViewChange { key, kind } in changes {
            let cx = &mut self.cx;
            if kind == ChangeKind::Rejected {
                cx.counters.records_rejected += 1;
                continue;
            }
            cx.changes.fleet_state |= !matches!(key, ParsedKey::Alive(_));
            if !matches!(key, ParsedKey::Alive(_) | ParsedKey::Mark) {
                self.fleet.mark_later(cx);
            }
            let (me, gone) = (self.fleet.node(), kind == ChangeKind::Gone);
            match key {
                // The node lives: if its record is gone, it registers again, with the same claims.
                ParsedKey::Node(node) if node == *me => cx.changes.unregistered |= gone,
                ParsedKey::Node(node) => {
                    self.services.on_node_record(cx, &self.fleet, &self.peers, &node);
                    if let Some(facts) = self.peers.on_record(cx, node, gone) {
                        self.health.forget_reports(&facts);
                    }
                }
                ParsedKey::Cidr(cidr) => {
                    cx.changes.claims = true;
                    cx.changes.blocks.insert(cidr);
                }
                ParsedKey::Endpoint(node, ip) if node == *me => {
                    cx.changes.own_endpoints.insert(ip);
                    if cx.startup.is_over() {
                        self.endpoints.name_by_record(cx, &mut allocators!(self), ip);
                    }
                }
                ParsedKey::Endpoint(node, ip) => {
                    self.peers.confirm_pending(cx, &node, ip);
                    cx.changes.records.insert((node, ip));
                }
                ParsedKey::IdentityRef(identity, node) if node == *me => {
                    self.identities.on_own_reference(cx, &self.fleet, identity, gone);
                }
                ParsedKey::IdentityId(identity) => {
                    self.ipcache.on_identity(identity);
                    let change = self.identities.on_identity(cx, &self.fleet, identity);
                    self.on_identity_changes(change);
                }
                // Claims on blocks and new label sets may wait for the end of a restoration.
                ParsedKey::Fleet => {
                    cx.changes.claims = true;
                    self.services.touch_all(cx);
                }
                ParsedKey::Mark => self.fleet.on_mark(),
                ParsedKey::Service(name) => {
                    cx.changes.services.insert(name);
                    // No other node gossips services: the snapshot is as urgent as for this node's own state.
                    cx.changes.own_state = true;
                }
                // A claim says nothing beyond its service's record.
                ParsedKey::ServiceClaim(_)
                | ParsedKey::Alive(_)
                | ParsedKey::IdentityLabels(_)
                | ParsedKey::IdentityRef(..) => {}
                // Later issues.
                ParsedKey::Policy(_) | ParsedKey::Keyring => {}
            }
        }
        self.peers.forget_kept(&mut self.cx, self.fleet.seen());
    }

    /// Hands an answer of the store to the protocol that asked, and the result to the component.
    pub(super) fn on_kv_answer(&mut self, id: KvId, outcome: KvOutcome) {
        let (cx, fleet) = (&mut self.cx, &self.fleet);
        let Some(task) = cx.requests.answered(id) else { return };
        cx.counters.kv_failures += u64::from(outcome.is_err());
        match task {
            Task::Join(machine) => {
                if let Some(end) = cx.step(fleet.view(), machine, outcome, Task::Join)
                    && self.fleet.on_joined(cx, end) == JoinEnd::Joined
                {
                    self.ipam.refresh_claims(cx, &self.fleet);
                    let wanted = self.fleet.wanted_record(&cx.config, own!(self));
                    self.fleet.register(cx, wanted);
                    self.peers.take_early().for_each(|facts| self.on_facts(facts));
                }
            }
            Task::Register(machine) => {
                if let Some(end) = cx.step(fleet.view(), machine, outcome, Task::Register) {
                    self.fleet.on_registered(cx, end);
                }
            }
            Task::ClaimBlock(machine) => {
                if let Some(end) = cx.step(fleet.view(), machine, outcome, Task::ClaimBlock) {
                    let end = self.ipam.on_claimed(cx, fleet, end);
                    self.on_block_end(end);
                }
            }
            Task::ReleaseBlock(block, call, machine) => {
                let again = |machine| Task::ReleaseBlock(block, call, machine);
                if let Some(end) = cx.step(fleet.view(), machine, outcome, again) {
                    self.ipam.on_released(cx, block, call, end);
                }
            }
            Task::AcquireIdentity(digest, machine) => {
                let again = |machine| Task::AcquireIdentity(digest.clone(), machine);
                if let Some(end) = cx.step(fleet.view(), machine, outcome, again) {
                    let change = self.identities.on_acquired(cx, digest, end);
                    self.on_identity_changes(change);
                }
            }
            Task::ReleaseIdentity(digest, machine) => {
                let again = |machine| Task::ReleaseIdentity(digest.clone(), machine);
                if let Some(end) = cx.step(fleet.view(), machine, outcome, again) {
                    self.identities.on_released(cx, &digest, end);
                }
            }
            Task::WriteRecords(machine) => {
                if let Some(end) = cx.step(fleet.view(), machine, outcome, Task::WriteRecords) {
                    self.records.on_written(cx, end);
                }
            }
            Task::PutService(call, machine) => {
                let task = |call, machine| Task::PutService(call, Box::new(machine));
                if let Some(end) = cx.step_of_call(fleet.view(), call, *machine, outcome, task) {
                    services::call::on_written(cx, call, end);
                }
            }
            Task::PutServices(together, machine) => {
                self.services.on_batch(cx, fleet, together, *machine, outcome);
            }
            Task::DeleteService(call, machine) => {
                if let Some(end) = cx.step_of_call(fleet.view(), call, machine, outcome, Task::DeleteService)
                {
                    services::call::on_deleted(cx, call, end);
                }
            }
            Task::Unattended => {}
            Task::Restore => self.fleet.on_restored(cx, &outcome),
            Task::Relist => {
                if let Some((page, later)) = self.fleet.on_relisted(cx, outcome) {
                    self.on_listed(page);
                    self.on_kv_update(later);
                }
            }
            Task::ReadMark(number) => self.fleet.on_mark_read(cx, number, outcome),
            Task::RemoveNode(node, call) => fleet::on_removed(cx, &node, call, outcome),
        }
    }
}
