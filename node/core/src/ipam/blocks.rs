//! This node's claims on blocks: claiming, adopting, releasing and losing them.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use kvstore_claims::{CidrClaim, CidrGrant, CidrRelease, ClaimError};
use kvstore_schema::record::{ClaimEpoch, ClaimState};

use super::Ipam;
use crate::{
    CallErrorKind, CallId, NodeConfig, Reply, context::Context, fleet::Fleet, limits::CLAIM_RETRY,
    requests::Task,
};

/// How a claim on a block ended.
pub(crate) enum BlockEnd {
    /// The block can be used.
    Granted(IpNetwork),
    /// The pools are exhausted.
    Exhausted(String),
    /// Nothing that an endpoint has to know.
    None,
}

impl Ipam {
    /// Computes this node's claims again.
    pub(crate) fn refresh_claims(&mut self, cx: &mut Context, fleet: &Fleet) {
        cx.changes.claims = false;
        let (view, me) = (fleet.view(), fleet.node());
        let claims = view.cidrs();
        // A claim that was this node's, and that the store shows since as another node's, or not at all.
        let lost = self.held.extract_if(.., |cidr, grant| {
            let still = claims.get(cidr).is_some_and(|claim| {
                claim.record.node == *me
                    && claim.created == grant.epoch
                    && claim.record.state == ClaimState::Live
            });
            !still && view.revision() >= grant.revision
        });
        for (cidr, _) in lost {
            self.lost.insert(cidr);
            cx.error(format!("pod CIDR {cidr} was taken from this node"));
        }
        // A block that is released is not adopted again before its claim is gone.
        self.releasing.retain(|cidr| claims.get(cidr).is_some_and(|claim| claim.record.node == *me));
        // The claims may be those of another machine of this name.
        let ours = fleet.owns_name(&cx.config) && !self.disowns(fleet);
        let in_store = view.cidrs_of(me).filter(|_| ours);
        let in_store = in_store.map(|(cidr, claim)| (cidr, view.epoch_of(claim)));
        let held = self.held.iter().map(|(cidr, grant)| (*cidr, grant.since));
        let again = self.again.iter().map(|(cidr, since)| (*cidr, *since));
        let all: BTreeMap<IpNetwork, ClaimEpoch> =
            in_store.chain(held).chain(again).filter(|(cidr, _)| !self.releasing.contains(cidr)).collect();
        let mut own: Vec<(IpNetwork, ClaimEpoch)> = all.into_iter().collect();
        own.sort_by_key(|(cidr, epoch)| (*epoch, *cidr));
        if own != self.own {
            let before = self.gateway();
            cx.changes.blocks.extend(own.iter().chain(&self.own).map(|(cidr, _)| *cidr));
            self.own = own;
            cx.changes.own_state = true;
            if self.gateway() != before {
                cx.changes.addresses.extend(before.into_iter().chain(self.gateway()));
                cx.changes.base = true;
            }
        }
    }

    /// Whether unknown claims in this node's name do not count: while the store is restored, they come from an older copy
    /// or from a node that remembers less.
    fn disowns(&self, fleet: &Fleet) -> bool {
        self.exact && fleet.is_restoring()
    }

    /// The store begins another generation: this node's claims are made again, with their age.
    pub(crate) fn claim_again(&mut self, cx: &mut Context, fleet: &Fleet) {
        let view = fleet.view();
        if !view.is_listed() {
            let remembered = view.cidrs_of(fleet.node()).map(|(cidr, claim)| (cidr, view.epoch_of(claim)));
            self.again.extend(remembered);
        }
        self.exact |= cx.startup.is_over() || cx.startup.snapshot_used;
        self.claiming = false;
        self.retry_at = cx.now.monotonic;
        self.releasing.clear();
        let held = std::mem::take(&mut self.held);
        self.again.extend(held.into_iter().map(|(cidr, grant)| (cidr, grant.since)));
        cx.changes.claims = true;
    }

    /// Releases claims in this node's name that are not its own.
    fn disown(&mut self, cx: &mut Context, fleet: &Fleet) {
        if !self.disowns(fleet) {
            return;
        }
        let known = |cidr: &IpNetwork| {
            self.held.contains_key(cidr) || self.again.contains_key(cidr) || self.releasing.contains(cidr)
        };
        let view = fleet.view();
        let unknown = view.cidrs_of(fleet.node()).filter(|(cidr, _)| !known(cidr));
        let unknown: Vec<CidrGrant> = unknown
            .map(|(cidr, claim)| CidrGrant {
                cidr,
                epoch: claim.created,
                since: view.epoch_of(claim),
                revision: claim.modified,
                token: claim.record.token.clone(),
                adopted: true,
            })
            .collect();
        for grant in unknown {
            self.release_block(cx, fleet, grant, None);
        }
    }

    fn release_block(&mut self, cx: &mut Context, fleet: &Fleet, grant: CidrGrant, call: Option<CallId>) {
        let cidr = grant.cidr;
        self.releasing.insert(cidr);
        let (machine, request) = CidrRelease::start(fleet.view().schema(), fleet.node().clone(), grant);
        cx.ask(request, Task::ReleaseBlock(cidr, call, machine));
    }

    /// Adopts claims of a former agent, and claims a further block when the reserve is touched. `starved`: an endpoint
    /// waits for an address. Returns how a claim ended that could not even begin.
    pub(crate) fn pursue(&mut self, cx: &mut Context, fleet: &Fleet, starved: bool) -> BlockEnd {
        if cx.changes.claims {
            self.refresh_claims(cx, fleet);
        }
        // The view shows the fleet's record a moment after this node has joined.
        let joined = fleet.is_registered() && fleet.view().fleet().is_some();
        if !joined || !fleet.is_connected() {
            return BlockEnd::None;
        }
        self.disown(cx, fleet);
        if self.claiming {
            return BlockEnd::None;
        }
        if let Some((cidr, since)) = self.again.first_key_value().map(|(cidr, since)| (*cidr, *since)) {
            if cx.now.monotonic >= self.retry_at {
                let token = self.token(&cx.config);
                let (machine, request) =
                    CidrClaim::again(fleet.view(), fleet.node().clone(), token, cidr, since);
                self.claiming = true;
                cx.ask(request, Task::ClaimBlock(machine));
            }
            return BlockEnd::None;
        }
        let adopt = self.own.iter().any(|(cidr, _)| !self.held.contains_key(cidr));
        let (wanted, free) = self.reserve(&cx.config);
        let more = starved || free < wanted.max(1);
        if !more {
            self.exhausted = None;
        }
        if !(adopt || more) || cx.now.monotonic < self.retry_at {
            return BlockEnd::None;
        }
        let token = self.token(&cx.config);
        let held = self.held.keys().chain(&self.releasing).copied().collect();
        match CidrClaim::start(fleet.view(), fleet.node().clone(), token, &held) {
            Ok((machine, request)) => {
                self.claiming = true;
                cx.ask(request, Task::ClaimBlock(machine));
                BlockEnd::None
            }
            // It is tried again when the fleet's record changes.
            Err(ClaimError::Restoring) => BlockEnd::None,
            Err(error) => self.claim_failed(cx, &error),
        }
    }

    fn token(&mut self, config: &NodeConfig) -> String {
        self.last_token += 1;
        format!("{}-{}-{}", config.machine_id, config.incarnation, self.last_token)
    }

    /// Takes the blocks of a snapshot into use: only this node releases them.
    pub(crate) fn use_snapshot(&mut self, cx: &mut Context, fleet: &Fleet) {
        self.refresh_claims(cx, fleet);
        for (cidr, _) in self.own.clone() {
            self.add_block(cx, cidr);
        }
    }

    /// Gives up blocks of a snapshot that are not this node's any more, now that the store has been listed.
    pub(crate) fn forfeit_blocks(&mut self, cx: &mut Context, fleet: &Fleet) {
        self.refresh_claims(cx, fleet);
        let own = |cidr: &IpNetwork| self.own.iter().any(|(own, _)| own == cidr);
        let gone: Vec<IpNetwork> = self.pool.blocks().filter(|cidr| !own(cidr)).collect();
        for cidr in gone {
            cx.error(format!("pod CIDR {cidr} was taken from this node"));
            // A block with endpoints in it stays, and is shown.
            if self.pool.remove_block(cidr).is_err() {
                self.lost.insert(cidr);
            }
        }
    }

    fn add_block(&mut self, cx: &mut Context, cidr: IpNetwork) {
        if let Err(error) = self.pool.add_block(cidr) {
            cx.error(format!("pod CIDR {cidr} cannot be used: {error}"));
        }
    }

    pub(crate) fn on_claimed(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        end: Result<CidrGrant, ClaimError>,
    ) -> BlockEnd {
        self.claiming = false;
        let grant = match end {
            Ok(grant) => grant,
            Err(error) => return self.claim_failed(cx, &error),
        };
        let cidr = grant.cidr;
        self.exhausted = None;
        self.lost.remove(&cidr);
        self.again.remove(&cidr);
        // A block that was lost and is adopted again is still in the pool.
        if !self.pool.blocks().any(|block| block == cidr) {
            self.add_block(cx, cidr);
        }
        self.held.insert(cidr, grant);
        self.refresh_claims(cx, fleet);
        BlockEnd::Granted(cidr)
    }

    fn claim_failed(&mut self, cx: &mut Context, error: &ClaimError) -> BlockEnd {
        let text = error.to_string();
        cx.error(text.clone());
        match error {
            // The claim is made again once this node is registered.
            ClaimError::NotRegistered { .. } => cx.changes.unregistered = true,
            ClaimError::PoolExhausted { .. } => {
                self.retry_at = cx.now.monotonic + CLAIM_RETRY;
                self.exhausted = Some(text.clone());
                return BlockEnd::Exhausted(text);
            }
            ClaimError::ClaimLost { cidr, .. } => {
                self.again.remove(cidr);
                self.lost.insert(*cidr);
                cx.changes.claims = true;
            }
            _ => self.retry_at = cx.now.monotonic + CLAIM_RETRY,
        }
        BlockEnd::None
    }

    /// Releases a block of this node for a caller.
    pub(crate) fn release_cidr(&mut self, cx: &mut Context, fleet: &Fleet, call: CallId, cidr: IpNetwork) {
        if !fleet.is_connected() {
            let text =
                format!("pod CIDR {cidr} cannot be given back while the store does not answer; try again");
            return cx.refuse(call, CallErrorKind::Unavailable, text);
        }
        let Some(grant) = self.held.get(&cidr).cloned() else {
            let text = format!("pod CIDR {cidr} is none of this node's");
            return cx.refuse(call, CallErrorKind::NotFound, text);
        };
        if self.own.first().is_some_and(|(first, _)| *first == cidr) {
            let text =
                format!("pod CIDR {cidr} holds this node's own address: it goes when the node is removed");
            return cx.refuse(call, CallErrorKind::Conflict, text);
        }
        if let Err(error) = self.pool.remove_block(cidr) {
            let text = format!("{error}: delete the endpoints in it first");
            return cx.refuse(call, CallErrorKind::Conflict, text);
        }
        self.held.remove(&cidr);
        self.release_block(cx, fleet, grant, Some(call));
        self.refresh_claims(cx, fleet);
    }

    pub(crate) fn on_released(
        &mut self,
        cx: &mut Context,
        cidr: IpNetwork,
        call: Option<CallId>,
        end: Result<(), ClaimError>,
    ) {
        if end.is_err() {
            self.releasing.remove(&cidr);
        }
        match (call, end) {
            (Some(call), Ok(())) => cx.reply(call, Ok(Reply::CidrReleased(cidr))),
            (Some(call), Err(error)) => cx.refuse(call, CallErrorKind::Unavailable, error.to_string()),
            (None, Ok(())) => {}
            (None, Err(error)) => cx.error(error.to_string()),
        }
        cx.changes.claims = true;
    }
}
