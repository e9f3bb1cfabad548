//! The addresses of a node's blocks: reused as late as possible, and never before their cool-down has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::blocks::{block_of, from_bits, host_mask, to_bits, width};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Why the pool did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Every address is used: claim a further block.
    #[error("all {used} addresses of this node's pod CIDRs are in use; another block has to be claimed")]
    Full {
        /// Addresses in use.
        used: usize,
    },
    /// Some rest after their release.
    #[error(
        "no address is free: {used} are in use and {cooling} rest after their release, the first for another {wait:?}; another block has to be claimed"
    )]
    Cooling {
        /// Addresses in use.
        used: usize,
        /// Addresses that rest.
        cooling: usize,
        /// Until the first of them is free.
        wait: Duration,
    },
    /// The address lies in no block, or is the gateway, network or broadcast address of one.
    #[error("address {0} is not one that this node may give to an endpoint")]
    NotOurs(IpAddr),
    /// The address has an owner.
    #[error("address {0} is in use")]
    InUse(IpAddr),
    /// The block is of another family.
    #[error("block {0} is of another address family than the pool")]
    Family(IpNetwork),
    /// The block overlaps one that is there.
    #[error("block {0} overlaps block {1} of this node")]
    Overlap(IpNetwork, IpNetwork),
    /// The block has no address for an endpoint.
    #[error("block {0} is too small to hold an endpoint")]
    TooSmall(IpNetwork),
    /// The block has addresses in use.
    #[error("block {cidr} still has {used} addresses in use")]
    BlockInUse {
        /// The block.
        cidr: IpNetwork,
        /// How many.
        used: usize,
    },
    /// The block is not in the pool.
    #[error("block {0} is none of this node's")]
    NoSuchBlock(IpNetwork),
}

/// How full a pool is. Counts of addresses; the reserved ones are in none of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolFill {
    /// What endpoints could have altogether.
    pub capacity: u128,
    /// In use.
    pub used: usize,
    /// Resting after release.
    pub cooling: usize,
}

/// One block and how many of its addresses are in use.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Block {
    cidr: IpNetwork,
    used: usize,
}

/// The addresses of one node in one family. Owned by node-core; one per family.
///
/// Invariant: an address of a block is in exactly one of: reserved (network, gateway; the last one too in
/// IPv4), free, used, cooling. So none is ever given out twice (P3).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddressPool {
    family: Family,
    cool_down: Duration,
    /// In the order in which they were added.
    blocks: Vec<Block>,
    /// Free addresses as ranges, first to last, both included; never adjacent, never overlapping.
    free: BTreeMap<u128, u128>,
    used: BTreeSet<u128>,
    cooling: BTreeMap<u128, Duration>,
    cooling_ends: BTreeSet<(Duration, u128)>,
    /// Where the search for a free address begins.
    cursor: u128,
}

impl AddressPool {
    /// An empty pool. `cool_down`: how long an address rests after its release, so that caches elsewhere forget the
    /// former owner.
    pub fn new(family: Family, cool_down: Duration) -> Self {
        Self {
            family,
            cool_down,
            blocks: Vec::new(),
            free: BTreeMap::new(),
            used: BTreeSet::new(),
            cooling: BTreeMap::new(),
            cooling_ends: BTreeSet::new(),
            cursor: 0,
        }
    }

    /// Adds a claimed block. Its network address is never given out, the one after it only as gateway, the
    /// last one of an IPv4 block never.
    ///
    /// # Errors
    /// Another family, an overlap with a block that is there, a block without room. Nothing has changed then.
    pub fn add_block(&mut self, cidr: IpNetwork) -> Result<(), AddressError> {
        if Family::of(cidr.ip()) != self.family {
            return Err(AddressError::Family(cidr));
        }
        let cidr = block_of(cidr.ip(), cidr.prefix());
        let overlaps = |other: &&Block| other.cidr.contains(cidr.ip()) || cidr.contains(other.cidr.ip());
        if let Some(other) = self.blocks.iter().find(overlaps) {
            return Err(AddressError::Overlap(cidr, other.cidr));
        }
        let (first, last) = usable(cidr).ok_or(AddressError::TooSmall(cidr))?;
        self.blocks.push(Block { cidr, used: 0 });
        self.insert_free(first, last);
        Ok(())
    }

    /// Removes a block, before its claim is released.
    ///
    /// # Errors
    /// When addresses of the block are in use, or the pool does not have the block. Nothing has changed then.
    pub fn remove_block(&mut self, cidr: IpNetwork) -> Result<(), AddressError> {
        let index =
            self.blocks.iter().position(|block| block.cidr == cidr).ok_or(AddressError::NoSuchBlock(cidr))?;
        if self.blocks[index].used > 0 {
            return Err(AddressError::BlockInUse { cidr, used: self.blocks[index].used });
        }
        self.blocks.remove(index);
        let (first, last) = usable(cidr).ok_or(AddressError::TooSmall(cidr))?;
        let resting: Vec<u128> = self.cooling.range(first..=last).map(|(bits, _)| *bits).collect();
        for bits in resting {
            self.warm(bits);
        }
        self.free.remove(&first);
        Ok(())
    }

    /// The address that endpoints use as their gateway: the first one of the first block.
    pub fn gateway(&self) -> Option<IpAddr> {
        let first = self.blocks.first()?.cidr;
        Some(from_bits(first.ip(), to_bits(first.ip()) + 1))
    }

    /// The blocks, in the order in which they were added.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.blocks.iter().map(|block| block.cidr)
    }

    /// The block that an address lies in.
    pub fn block_of(&self, ip: IpAddr) -> Option<IpNetwork> {
        self.blocks().find(|cidr| cidr.contains(ip))
    }

    /// Gives out the lowest free address behind the one given out last, so that reuse comes late.
    /// `now`: the caller's monotone clock.
    ///
    /// # Errors
    /// [`AddressError::Full`] or [`AddressError::Cooling`]: a further block is needed.
    pub fn allocate(&mut self, now: Duration) -> Result<IpAddr, AddressError> {
        self.thaw(now);
        let behind = self.free.range(..=self.cursor).next_back().filter(|(_, last)| **last >= self.cursor);
        let bits = match behind {
            Some(_) => self.cursor,
            None => match self.free.range(self.cursor..).next().or_else(|| self.free.iter().next()) {
                Some((first, _)) => *first,
                None => return Err(self.shortage(now)),
            },
        };
        self.take(bits);
        Ok(self.address(bits))
    }

    /// Gives out a certain address, for example the one that a user asked for. It must not be resting.
    ///
    /// # Errors
    /// [`AddressError::NotOurs`], [`AddressError::InUse`], [`AddressError::Cooling`].
    pub fn allocate_exact(&mut self, ip: IpAddr, now: Duration) -> Result<(), AddressError> {
        self.thaw(now);
        let bits = self.known(ip)?;
        match self.cooling.get(&bits) {
            Some(until) => Err(AddressError::Cooling {
                used: self.used.len(),
                cooling: self.cooling.len(),
                wait: until.saturating_sub(now),
            }),
            None => {
                self.take(bits);
                Ok(())
            }
        }
    }

    /// Takes an address into use that an endpoint has already, after a restart. The address may be in its cool-down.
    ///
    /// # Errors
    /// [`AddressError::NotOurs`], [`AddressError::InUse`].
    pub fn restore(&mut self, ip: IpAddr) -> Result<(), AddressError> {
        let bits = self.known(ip)?;
        self.warm(bits);
        self.take(bits);
        Ok(())
    }

    /// Releases an address, which then rests for the cool-down. Returns whether the address was in use.
    pub fn release(&mut self, ip: IpAddr, now: Duration) -> bool {
        let bits = to_bits(ip);
        if Family::of(ip) != self.family || !self.used.remove(&bits) {
            return false;
        }
        self.count_used(bits, |used| used - 1);
        let until = now.saturating_add(self.cool_down);
        self.cooling.insert(bits, until);
        self.cooling_ends.insert((until, bits));
        true
    }

    /// Whether an address is in use.
    pub fn is_used(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family && self.used.contains(&to_bits(ip))
    }

    /// How full the pool is. Addresses whose rest has ended count as resting until the next allocation.
    pub fn fill(&self) -> PoolFill {
        PoolFill {
            capacity: self.blocks().map(capacity).fold(0, u128::saturating_add),
            used: self.used.len(),
            cooling: self.cooling.len(),
        }
    }

    /// How full one block is; `None` when it is not in the pool.
    pub fn block_fill(&self, cidr: IpNetwork) -> Option<PoolFill> {
        let block = self.blocks.iter().find(|block| block.cidr == cidr)?;
        let (first, last) = usable(cidr)?;
        let cooling = self.cooling.range(first..=last).count();
        Some(PoolFill { capacity: capacity(cidr), used: block.used, cooling })
    }

    /// The address as a number, if the pool has it and it is not in use.
    fn known(&self, ip: IpAddr) -> Result<u128, AddressError> {
        let bits = to_bits(ip);
        let range = self.block_of(ip).and_then(usable);
        match range {
            Some((first, last)) if (first..=last).contains(&bits) => {}
            _ => return Err(AddressError::NotOurs(ip)),
        }
        if self.used.contains(&bits) { Err(AddressError::InUse(ip)) } else { Ok(bits) }
    }

    fn shortage(&self, now: Duration) -> AddressError {
        let used = self.used.len();
        match self.cooling_ends.first() {
            Some((until, _)) => {
                AddressError::Cooling { used, cooling: self.cooling.len(), wait: until.saturating_sub(now) }
            }
            None => AddressError::Full { used },
        }
    }

    /// Moves a free address into use.
    fn take(&mut self, bits: u128) {
        let range = self.free.range(..=bits).next_back().map(|(first, last)| (*first, *last));
        let (first, last) = range.expect("the caller has found it free");
        self.free.remove(&first);
        if first < bits {
            self.free.insert(first, bits - 1);
        }
        if bits < last {
            self.free.insert(bits + 1, last);
        }
        self.used.insert(bits);
        self.count_used(bits, |used| used + 1);
        self.cursor = bits.wrapping_add(1);
    }

    fn count_used(&mut self, bits: u128, change: impl Fn(usize) -> usize) {
        let ip = self.address(bits);
        if let Some(block) = self.blocks.iter_mut().find(|block| block.cidr.contains(ip)) {
            block.used = change(block.used);
        }
    }

    /// Frees what has rested long enough.
    fn thaw(&mut self, now: Duration) {
        while let Some(&(until, bits)) = self.cooling_ends.first() {
            if until > now {
                break;
            }
            self.warm(bits);
        }
    }

    /// Ends an address's rest, if it rests.
    fn warm(&mut self, bits: u128) {
        if let Some(until) = self.cooling.remove(&bits) {
            self.cooling_ends.remove(&(until, bits));
            self.insert_free(bits, bits);
        }
    }

    /// Adds a range of free addresses, joined with its neighbours. Blocks never join: their network
    /// addresses lie between.
    fn insert_free(&mut self, mut first: u128, mut last: u128) {
        let before = self.free.range(..first).next_back().map(|(start, end)| (*start, *end));
        if let Some((start, end)) = before
            && end + 1 == first
        {
            self.free.remove(&start);
            first = start;
        }
        if let Some(end) = last.checked_add(1).and_then(|next| self.free.remove(&next)) {
            last = end;
        }
        self.free.insert(first, last);
    }

    fn address(&self, bits: u128) -> IpAddr {
        match self.family {
            Family::V4 => from_bits(IpAddr::from([0; 4]), bits),
            Family::V6 => from_bits(IpAddr::from([0; 16]), bits),
        }
    }
}

/// The first and last address of a block that endpoints may have.
fn usable(cidr: IpNetwork) -> Option<(u128, u128)> {
    let network = to_bits(cidr.ip());
    let end = network + host_mask(width(cidr.ip()), cidr.prefix());
    let last = if cidr.is_ipv4() { end.checked_sub(1)? } else { end };
    let first = network.checked_add(2)?;
    (first <= last).then_some((first, last))
}

fn capacity(cidr: IpNetwork) -> u128 {
    usable(cidr).map_or(0, |(first, last)| last - first + 1)
}
