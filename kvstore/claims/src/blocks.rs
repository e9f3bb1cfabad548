//! Arithmetic on pools: the blocks that a fleet can claim, numbered from zero through all pools.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use kvstore_schema::record::FleetRecord;
use serde::{Deserialize, Serialize};

/// An address as a number.
pub(crate) fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// A number as an address of the same family as `like`; bits that do not fit are cut off.
pub(crate) fn from_bits(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(bits as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(bits)),
    }
}

/// The number of bits of an address of this family.
pub(crate) fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// How many addresses a prefix of this length leaves, less one: its host mask.
pub(crate) fn host_mask(width: u8, prefix: u8) -> u128 {
    match u32::from(width.saturating_sub(prefix)) {
        128 => u128::MAX,
        bits => (1 << bits) - 1,
    }
}

/// The aligned block of a prefix length that an address lies in. A length beyond the family's is cut to it.
pub(crate) fn block_of(ip: IpAddr, prefix: u8) -> IpNetwork {
    let prefix = prefix.min(width(ip));
    let network = from_bits(ip, to_bits(ip) & !host_mask(width(ip), prefix));
    IpNetwork::new(network, prefix).expect("the length is at most the family's")
}

/// The blocks of a fleet, in the order of its pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct Blocks {
    /// Each pool with the length of its blocks.
    pools: Vec<(IpNetwork, u8)>,
}

impl Blocks {
    pub(crate) fn of(fleet: &FleetRecord) -> Self {
        let block =
            |pool: &IpNetwork| if pool.is_ipv4() { fleet.block_prefix_v4 } else { fleet.block_prefix_v6 };
        Self { pools: fleet.pools.iter().map(|pool| (*pool, block(pool))).collect() }
    }

    pub(crate) fn pools(&self) -> Vec<IpNetwork> {
        self.pools.iter().map(|(pool, _)| *pool).collect()
    }

    /// How many blocks there are; more than 2^64 count as that.
    pub(crate) fn total(&self) -> u64 {
        self.pools.iter().fold(0, |sum: u64, (pool, block)| sum.saturating_add(count(pool, *block)))
    }

    /// The block with a number below [`Blocks::total`].
    pub(crate) fn nth(&self, mut index: u64) -> Option<IpNetwork> {
        for (pool, block) in &self.pools {
            let here = count(pool, *block);
            if index < here {
                let size = host_mask(width(pool.ip()), *block) + 1;
                let bits = to_bits(pool.network()) + u128::from(index) * size;
                return Some(block_of(from_bits(pool.ip(), bits), *block));
            }
            index -= here;
        }
        None
    }
}

fn count(pool: &IpNetwork, block: u8) -> u64 {
    1u64.checked_shl(u32::from(block.saturating_sub(pool.prefix()))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(pools: &[&str]) -> Blocks {
        Blocks::of(&FleetRecord {
            fleet_id: "f".to_owned(),
            pools: pools.iter().map(|pool| pool.parse().unwrap()).collect(),
            service_pools: Vec::new(),
            block_prefix_v4: 24,
            block_prefix_v6: 64,
            tunnel_port: 8472,
            life: Default::default(),
            unknown: Default::default(),
        })
    }

    #[test]
    fn blocks_are_numbered_through_all_pools() {
        let check = |index, expected: Option<&str>| {
            let blocks = blocks(&["10.0.0.0/22", "fd00::/62", "10.9.0.0/24"]);
            assert_eq!(blocks.total(), 4 + 4 + 1);
            assert_eq!(blocks.nth(index), expected.map(|text| text.parse().unwrap()), "{index}");
        };
        check(0, Some("10.0.0.0/24"));
        check(3, Some("10.0.3.0/24"));
        check(4, Some("fd00::/64"));
        check(7, Some("fd00:0:0:3::/64"));
        check(8, Some("10.9.0.0/24"));
        check(9, None);
    }

    #[test]
    fn largest_pool_has_no_overflow() {
        assert_eq!(blocks(&["::/0"]).total(), u64::MAX);
        assert_eq!(blocks(&["::/0"]).nth(u64::MAX - 1).unwrap().to_string(), "ffff:ffff:ffff:fffe::/64");
    }

    #[test]
    fn block_of_an_address_is_aligned_to_each_length() {
        let check = |ip: &str, prefix, expected: &str| {
            assert_eq!(block_of(ip.parse().unwrap(), prefix), expected.parse().unwrap());
        };
        check("10.1.2.3", 24, "10.1.2.0/24");
        check("10.1.2.3", 0, "0.0.0.0/0");
        check("10.1.2.3", 32, "10.1.2.3/32");
        check("fd00::1", 0, "::/0");
        check("fd00::1", 128, "fd00::1/128");
    }
}
