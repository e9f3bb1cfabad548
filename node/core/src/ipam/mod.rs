//! IPAM: this node's blocks, and the addresses in them.

mod blocks;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnetwork::IpNetwork;
use kvstore_claims::{AddressError, AddressPool, CidrGrant, Family};
use kvstore_schema::record::ClaimEpoch;
use serde::{Deserialize, Serialize};

use crate::{CallErrorKind, CidrView, NodeConfig, context::Context};
pub(crate) use blocks::BlockEnd;

/// Blocks and addresses. One per node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ipam {
    pool: AddressPool,
    held: BTreeMap<IpNetwork, CidrGrant>,
    /// This node's live claims, oldest first: those held, and those in the store that wait to be adopted.
    own: Vec<(IpNetwork, ClaimEpoch)>,
    /// Claims of a former generation of the store, to be made again.
    again: BTreeMap<IpNetwork, ClaimEpoch>,
    /// `held` and `again` are all that this node owns: another claim in its name is from an older copy.
    exact: bool,
    /// Blocks being released: not this node's any more.
    releasing: BTreeSet<IpNetwork>,
    claiming: bool,
    last_token: u64,
    /// Why there is no further block.
    exhausted: Option<String>,
    /// Before this time no further block is claimed.
    retry_at: Duration,
    /// Blocks that another node has taken.
    lost: BTreeSet<IpNetwork>,
    /// The gateway that the kernel had at the start; used until this node's blocks are known.
    adopted_gateway: Option<IpAddr>,
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
            releasing: BTreeSet::new(),
            claiming: false,
            last_token: 0,
            exhausted: None,
            retry_at: Duration::ZERO,
            lost: BTreeSet::new(),
            adopted_gateway: None,
        }
    }

    /// This node's own address in the pod network: the first usable address of its oldest block.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        self.own.first().map(|(cidr, _)| first_address(*cidr)).or(self.adopted_gateway)
    }

    /// Keeps the gateway that the kernel has.
    pub(crate) fn adopt_gateway(&mut self, gateway: Option<IpAddr>) {
        self.adopted_gateway = gateway;
    }

    /// This node's live claims, oldest first.
    pub(crate) fn own(&self) -> &[(IpNetwork, ClaimEpoch)] {
        &self.own
    }

    /// The blocks that the store has confirmed.
    pub(crate) fn held(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.held.keys().copied()
    }

    /// The block that addresses of this node are taken from.
    pub(crate) fn blocks(&self) -> Vec<IpNetwork> {
        self.pool.blocks().collect()
    }

    /// Whether every claim of this node is held: its addresses can all be assigned and recorded.
    pub(crate) fn is_settled(&self) -> bool {
        !self.held.is_empty() && self.own.iter().all(|(cidr, _)| self.held.contains_key(cidr))
    }

    /// The confirmed block that an address lies in.
    pub(crate) fn block_of(&self, ip: IpAddr) -> Option<&CidrGrant> {
        self.held.get(&self.pool.block_of(ip)?)
    }

    /// How many addresses should be free, and how many are. Those that cool down are free soon.
    fn reserve(&self, config: &NodeConfig) -> (u128, u128) {
        let fill = self.pool.fill();
        let first = self.pool.blocks().next().and_then(|block| self.pool.block_fill(block));
        let most = first.map_or(u128::MAX, |block| block.capacity);
        (u128::from(config.address_reserve).min(most), fill.capacity.saturating_sub(fill.used as u128))
    }

    /// What an operator should know of blocks and free addresses.
    pub(crate) fn warnings(&self, config: &NodeConfig, connected: bool) -> impl Iterator<Item = String> {
        let lost = self.lost.iter().map(|cidr| {
            format!("pod CIDR {cidr} was taken from this node: delete the endpoints in it and add them again")
        });
        self.shortage(config, connected).into_iter().chain(lost)
    }

    fn shortage(&self, config: &NodeConfig, connected: bool) -> Option<String> {
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

    /// Takes an address for an endpoint. `None`: the endpoint has to wait for a further block.
    ///
    /// # Errors
    /// The answer to the caller.
    pub(crate) fn take_address(
        &mut self,
        now: Duration,
        wanted: Option<IpAddr>,
    ) -> Result<Option<IpAddr>, (CallErrorKind, String)> {
        if let Some(ip) = wanted {
            return match self.pool.allocate_exact(ip, now) {
                Ok(()) => Ok(Some(ip)),
                Err(error @ AddressError::NotOurs(_)) => {
                    let blocks: Vec<String> = self.own.iter().map(|(cidr, _)| cidr.to_string()).collect();
                    let blocks = if blocks.is_empty() { "none yet".to_owned() } else { blocks.join(", ") };
                    Err((CallErrorKind::Invalid, format!("{error}: its pod CIDRs are {blocks}")))
                }
                Err(error) => Err((CallErrorKind::Conflict, error.to_string())),
            };
        }
        match (self.pool.allocate(now), &self.exhausted) {
            (Ok(ip), _) => Ok(Some(ip)),
            (Err(_), Some(text)) if now < self.retry_at => Err((CallErrorKind::Exhausted, text.clone())),
            (Err(_), _) => Ok(None),
        }
    }

    /// Takes the address of an adopted endpoint into use, if it is not in use yet.
    pub(crate) fn restore_address(&mut self, cx: &mut Context, ip: IpAddr) {
        if !self.pool.is_used(ip)
            && let Err(error) = self.pool.restore(ip)
        {
            cx.error(format!("endpoint address {ip}: {error}"));
        }
    }

    /// An endpoint does not use its address any more.
    pub(crate) fn release_address(&mut self, ip: IpAddr, now: Duration) {
        self.pool.release(ip, now);
    }
}

/// The first usable address of a block.
fn first_address(cidr: IpNetwork) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + 1).into()),
    }
}
