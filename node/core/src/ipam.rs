//! This node's blocks and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnetwork::IpNetwork;
use kvstore_claims::{AddressError, AddressPool, CidrClaim, CidrGrant, CidrRelease, ClaimError, Family};
use kvstore_schema::record::ClaimEpoch;
use serde::{Deserialize, Serialize};

use crate::{
    CallErrorKind, CallId, CidrView, NodeConfig, Reply, limits::CLAIM_RETRY, node::Node, tasks::Task,
};

/// Blocks and addresses. One per node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ipam {
    pub pool: AddressPool,
    pub held: BTreeMap<IpNetwork, CidrGrant>,
    /// This node's live claims, oldest first: those held, and those in the store that wait to be adopted.
    pub own: Vec<(IpNetwork, ClaimEpoch)>,
    /// Claims of a former life of the store, to be made again.
    again: BTreeMap<IpNetwork, ClaimEpoch>,
    /// `held` and `again` are all that this node owns: another claim in its name is of an older copy.
    exact: bool,
    /// Claims changed since `own` was made.
    pub changed: bool,
    /// Blocks being given back: not ours any more.
    releasing: BTreeSet<IpNetwork>,
    claiming: bool,
    tokens: u64,
    /// Why there is no further block.
    exhausted: Option<String>,
    /// Before this no further block is asked for.
    retry_at: Duration,
    /// Claims that somebody else has taken away.
    pub lost: BTreeSet<IpNetwork>,
}

impl Ipam {
    pub(crate) fn new(config: &NodeConfig) -> Self {
        let family = config.pools.first().map_or(Family::V4, |pool| Family::of(pool.network()));
        Self {
            pool: AddressPool::new(family, config.address_cooldown),
            held: BTreeMap::new(),
            own: Vec::new(),
            again: BTreeMap::new(),
            exact: false,
            changed: false,
            releasing: BTreeSet::new(),
            claiming: false,
            tokens: 0,
            exhausted: None,
            retry_at: Duration::ZERO,
            lost: BTreeSet::new(),
        }
    }

    /// Whether every claim of this node is held: its addresses can all be given out and recorded.
    pub(crate) fn settled(&self) -> bool {
        !self.held.is_empty() && self.own.iter().all(|(cidr, _)| self.held.contains_key(cidr))
    }

    /// How many addresses are wanted free, and how many are. Those that rest are free soon.
    pub(crate) fn reserve(&self, config: &NodeConfig) -> (u128, u128) {
        let fill = self.pool.fill();
        let first = self.pool.blocks().next().and_then(|block| self.pool.block_fill(block));
        let most = first.map_or(u128::MAX, |block| block.capacity);
        (u128::from(config.address_reserve).min(most), fill.capacity.saturating_sub(fill.used as u128))
    }

    /// The block that an address lies in.
    pub(crate) fn block_of(&self, ip: IpAddr) -> Option<&CidrGrant> {
        self.held.get(&self.pool.block_of(ip)?)
    }

    /// What an operator should know of the room that is left.
    pub(crate) fn shortage(&self, config: &NodeConfig, connected: bool) -> Option<String> {
        let (wanted, free) = self.reserve(config);
        if free >= wanted.max(1) || self.pool.blocks().next().is_none() {
            return None;
        }
        let text = self.exhausted.as_deref().or((!connected).then_some("the store does not answer"))?;
        Some(format!("{free} addresses are free on this node, {wanted} are wanted in reserve: {text}"))
    }

    pub(crate) fn next_wake(&self) -> Option<Duration> {
        Some(self.retry_at)
    }

    /// The blocks, oldest first, with their fill.
    pub(crate) fn views(&self) -> Vec<CidrView> {
        self.own
            .iter()
            .map(|(cidr, epoch)| {
                let fill = self.pool.block_fill(*cidr).unwrap_or_default();
                let free = fill.capacity.saturating_sub((fill.used + fill.cooling) as u128);
                CidrView {
                    cidr: *cidr,
                    epoch: epoch.revision.0,
                    used: fill.used as u64,
                    cooling: fill.cooling as u64,
                    free: u64::try_from(free).unwrap_or(u64::MAX),
                }
            })
            .collect()
    }
}

impl Node {
    /// Makes the list of this node's claims anew.
    pub(crate) fn refresh_own_claims(&mut self) {
        self.ipam.changed = false;
        let claims = self.view.cidrs();
        let me = &self.config.node;
        // A claim that the store shows as another's, or not at all, after it was ours.
        let seen = self.view.revision();
        let lost: Vec<IpNetwork> = (self.ipam.held.iter())
            .filter(|(cidr, grant)| {
                let still = claims.get(cidr).is_some_and(|claim| {
                    claim.record.node == *me
                        && claim.created == grant.epoch
                        && claim.record.state == kvstore_schema::record::ClaimState::Live
                });
                !still && seen >= grant.revision
            })
            .map(|(cidr, _)| *cidr)
            .collect();
        for cidr in lost {
            self.ipam.held.remove(&cidr);
            self.ipam.lost.insert(cidr);
            self.error(format!("pod CIDR {cidr} was taken from this node"));
        }
        let (claims, me) = (self.view.cidrs(), &self.config.node);
        // A block given back stays out of use until its claim is gone: we would adopt it again.
        self.ipam.releasing.retain(|cidr| claims.get(cidr).is_some_and(|claim| claim.record.node == *me));
        // Another machine of this name may be the one whose claims these are.
        let ours = self.name_is_ours();
        let in_store = self.view.cidrs_of(me).map(|(cidr, claim)| (cidr, self.view.epoch_of(claim)));
        let in_store = in_store.filter(|_| ours && !self.disowns());
        let held = self.ipam.held.iter().map(|(cidr, grant)| (*cidr, grant.since));
        let again = self.ipam.again.iter().map(|(cidr, since)| (*cidr, *since));
        let all: BTreeMap<IpNetwork, ClaimEpoch> = in_store
            .chain(held)
            .chain(again)
            .filter(|(cidr, _)| !self.ipam.releasing.contains(cidr))
            .collect();
        let mut own: Vec<(IpNetwork, ClaimEpoch)> = all.into_iter().collect();
        own.sort_by_key(|(cidr, epoch)| (*epoch, *cidr));
        if own != self.ipam.own {
            let gateway = self.gateway();
            self.desired.prefixes.extend(own.iter().chain(&self.ipam.own).map(|(cidr, _)| *cidr));
            self.ipam.own = own;
            self.snapshots.own_changed = true;
            if self.gateway() != gateway {
                self.desired.addresses.extend(gateway.into_iter().chain(self.gateway()));
                self.desired.base = true;
            }
        }
    }

    /// Whether claims in this node's name that it does not know are none: while the store is made whole again, they come
    /// from an older copy, or from somebody who remembers less.
    fn disowns(&self) -> bool {
        self.ipam.exact && self.store.restoring.is_some()
    }

    /// The store has begun another life: this node's claims are to be made again, as old as they are.
    pub(crate) fn claim_blocks_again(&mut self) {
        let remembered = (!self.view.is_listed()).then(|| {
            self.view.cidrs_of(&self.config.node).map(|(cidr, claim)| (cidr, self.view.epoch_of(claim)))
        });
        let remembered: Vec<(IpNetwork, ClaimEpoch)> = remembered.into_iter().flatten().collect();
        self.ipam.exact |= self.audit.trusted.is_some() || self.snapshots.restored;
        self.ipam.claiming = false;
        self.ipam.retry_at = self.now.monotonic;
        self.ipam.releasing.clear();
        self.ipam.again.extend(remembered);
        for (cidr, grant) in std::mem::take(&mut self.ipam.held) {
            self.ipam.again.insert(cidr, grant.since);
        }
        self.ipam.changed = true;
    }

    /// Gives back claims in this node's name that are not its own.
    fn disown(&mut self) {
        if !self.disowns() {
            return;
        }
        let known = |cidr: &IpNetwork| {
            self.ipam.held.contains_key(cidr)
                || self.ipam.again.contains_key(cidr)
                || self.ipam.releasing.contains(cidr)
        };
        let strange: Vec<CidrGrant> = self
            .view
            .cidrs_of(&self.config.node)
            .filter(|(cidr, _)| !known(cidr))
            .map(|(cidr, claim)| CidrGrant {
                cidr,
                epoch: claim.created,
                since: self.view.epoch_of(claim),
                revision: claim.modified,
                token: claim.record.token.clone(),
                adopted: true,
            })
            .collect();
        for grant in strange {
            let cidr = grant.cidr;
            self.ipam.releasing.insert(cidr);
            let (machine, request) = CidrRelease::start(self.view.schema(), self.config.node.clone(), grant);
            self.ask(request, Task::GiveBack(cidr, None, machine));
        }
    }

    /// Adopts claims of a former life, and claims a further block when the reserve is touched.
    pub(crate) fn pursue_blocks(&mut self) {
        if self.ipam.changed {
            self.refresh_own_claims();
        }
        // The fleet's record reaches the view a moment after this node has joined.
        let joined = self.membership.registered() && self.view.fleet().is_some();
        if !joined || !self.store.connected {
            return;
        }
        self.disown();
        if self.ipam.claiming {
            return;
        }
        if let Some((cidr, since)) = self.ipam.again.first_key_value().map(|(cidr, since)| (*cidr, *since)) {
            if self.now.monotonic >= self.ipam.retry_at {
                let (token, node) = (self.claim_token(), self.config.node.clone());
                let (machine, request) = CidrClaim::again(&self.view, node, token, cidr, since);
                self.ipam.claiming = true;
                self.ask(request, Task::Claim(machine));
            }
            return;
        }
        let adopt = self.ipam.own.iter().any(|(cidr, _)| !self.ipam.held.contains_key(cidr));
        let (wanted, free) = self.ipam.reserve(&self.config);
        let more = self.endpoints.waits_for_address() || free < wanted.max(1);
        if !more {
            self.ipam.exhausted = None;
        }
        if !(adopt || more) || self.now.monotonic < self.ipam.retry_at {
            return;
        }
        let token = self.claim_token();
        let held = self.ipam.held.keys().chain(&self.ipam.releasing).copied().collect();
        match CidrClaim::start(&self.view, self.config.node.clone(), token, &held) {
            Ok((machine, request)) => {
                self.ipam.claiming = true;
                self.ask(request, Task::Claim(machine));
            }
            // Looked at again when the fleet's record changes.
            Err(ClaimError::Restoring) => {}
            Err(error) => self.no_block(&error),
        }
    }

    fn claim_token(&mut self) -> String {
        self.ipam.tokens += 1;
        format!("{}-{}-{}", self.config.machine_id, self.config.incarnation, self.ipam.tokens)
    }

    /// Takes the blocks of a snapshot into use: nobody but this node gives them back.
    pub(crate) fn use_remembered_blocks(&mut self) {
        self.refresh_own_claims();
        for (cidr, _) in self.ipam.own.clone() {
            if let Err(error) = self.ipam.pool.add_block(cidr) {
                self.error(format!("pod CIDR {cidr} cannot be used: {error}"));
            }
        }
    }

    /// Gives up blocks of a snapshot that are not this node's any more, now that the store tells.
    pub(crate) fn forfeit_blocks(&mut self) {
        self.refresh_own_claims();
        let own = |cidr: &IpNetwork| self.ipam.own.iter().any(|(own, _)| own == cidr);
        let gone: Vec<IpNetwork> = self.ipam.pool.blocks().filter(|cidr| !own(cidr)).collect();
        for cidr in gone {
            self.error(format!("pod CIDR {cidr} was taken from this node"));
            // One with endpoints in it stays, and is shown.
            if self.ipam.pool.remove_block(cidr).is_err() {
                self.ipam.lost.insert(cidr);
            }
        }
    }

    pub(crate) fn on_claimed(&mut self, end: Result<CidrGrant, ClaimError>) {
        self.ipam.claiming = false;
        let grant = match end {
            Ok(grant) => grant,
            Err(error) => return self.no_block(&error),
        };
        let cidr = grant.cidr;
        self.ipam.exhausted = None;
        self.ipam.lost.remove(&cidr);
        self.ipam.again.remove(&cidr);
        // One that was lost and is adopted again is in the pool still.
        if !self.ipam.pool.blocks().any(|block| block == cidr)
            && let Err(error) = self.ipam.pool.add_block(cidr)
        {
            self.error(format!("pod CIDR {cidr} cannot be used: {error}"));
        }
        self.ipam.held.insert(cidr, grant);
        self.refresh_own_claims();
        self.restore_addresses(cidr);
        self.give_addresses();
    }

    fn no_block(&mut self, error: &ClaimError) {
        let text = error.to_string();
        match error {
            // It registers again, and asks again then.
            ClaimError::NotRegistered { .. } => self.membership.registered = None,
            ClaimError::PoolExhausted { .. } => {
                self.ipam.retry_at = self.now.monotonic + CLAIM_RETRY;
                self.ipam.exhausted = Some(text.clone());
                self.refuse_addresses(&text);
            }
            ClaimError::ClaimLost { cidr, .. } => {
                self.ipam.again.remove(cidr);
                self.ipam.lost.insert(*cidr);
                self.ipam.changed = true;
            }
            _ => self.ipam.retry_at = self.now.monotonic + CLAIM_RETRY,
        }
        self.error(text);
    }

    /// Takes an address for an endpoint. `None`: it has to wait for a further block.
    ///
    /// # Errors
    /// The answer to whoever asked.
    pub(crate) fn take_address(
        &mut self,
        wanted: Option<IpAddr>,
    ) -> Result<Option<IpAddr>, (CallErrorKind, String)> {
        let now = self.now.monotonic;
        if let Some(ip) = wanted {
            return match self.ipam.pool.allocate_exact(ip, now) {
                Ok(()) => Ok(Some(ip)),
                Err(error @ AddressError::NotOurs(_)) => {
                    let blocks: Vec<String> =
                        self.ipam.own.iter().map(|(cidr, _)| cidr.to_string()).collect();
                    let blocks = if blocks.is_empty() { "none yet".to_owned() } else { blocks.join(", ") };
                    Err((CallErrorKind::Invalid, format!("{error}: its pod CIDRs are {blocks}")))
                }
                Err(error) => Err((CallErrorKind::Conflict, error.to_string())),
            };
        }
        match (self.ipam.pool.allocate(now), &self.ipam.exhausted) {
            (Ok(ip), _) => Ok(Some(ip)),
            (Err(_), Some(text)) if now < self.ipam.retry_at => Err((CallErrorKind::Exhausted, text.clone())),
            (Err(_), _) => Ok(None),
        }
    }

    /// Gives a block of this node back.
    pub(crate) fn release_cidr(&mut self, call: CallId, cidr: IpNetwork) {
        if !self.store.connected {
            let text =
                format!("pod CIDR {cidr} cannot be given back while the store does not answer; try again");
            return self.refuse(call, CallErrorKind::Unavailable, text);
        }
        let Some(grant) = self.ipam.held.get(&cidr).cloned() else {
            return self.refuse(
                call,
                CallErrorKind::NotFound,
                format!("pod CIDR {cidr} is none of this node's"),
            );
        };
        if self.ipam.own.first().is_some_and(|(first, _)| *first == cidr) {
            let text =
                format!("pod CIDR {cidr} holds this node's own address: it goes when the node is removed");
            return self.refuse(call, CallErrorKind::Conflict, text);
        }
        if let Err(error) = self.ipam.pool.remove_block(cidr) {
            let text = format!("{error}: delete the endpoints in it first");
            return self.refuse(call, CallErrorKind::Conflict, text);
        }
        self.ipam.held.remove(&cidr);
        self.ipam.releasing.insert(cidr);
        self.refresh_own_claims();
        let (machine, request) = CidrRelease::start(self.view.schema(), self.config.node.clone(), grant);
        self.ask(request, Task::GiveBack(cidr, Some(call), machine));
    }

    pub(crate) fn on_given_back(
        &mut self,
        cidr: IpNetwork,
        call: Option<CallId>,
        end: Result<(), ClaimError>,
    ) {
        if end.is_err() {
            self.ipam.releasing.remove(&cidr);
        }
        match (call, end) {
            (Some(call), Ok(())) => self.reply(call, Ok(Reply::CidrReleased(cidr))),
            (Some(call), Err(error)) => self.refuse(call, CallErrorKind::Unavailable, error.to_string()),
            (None, Ok(())) => {}
            (None, Err(error)) => self.error(error.to_string()),
        }
        self.ipam.changed = true;
    }
}

/// The first usable address of a block: the node's own.
pub(crate) fn first_address(cidr: IpNetwork) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + 1).into()),
    }
}
