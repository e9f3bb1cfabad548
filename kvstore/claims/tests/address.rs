//! The address pool: who gets what, when it comes back, and a random walk beside a plain model.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use kvstore_claims::{AddressError, AddressPool, Family, PoolFill};

const REST: Duration = Duration::from_secs(60);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(blocks: &[&str]) -> AddressPool {
    let family = if blocks[0].contains(':') { Family::V6 } else { Family::V4 };
    let mut pool = AddressPool::new(family, REST);
    for block in blocks {
        pool.add_block(block.parse().unwrap()).unwrap();
    }
    pool
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn pool_never_gives_out_network_gateway_and_broadcast() {
    let check = |blocks: &[&str], gateway: &str, expected: &[&str]| {
        let mut pool = pool(blocks);
        assert_eq!(pool.gateway(), Some(ip(gateway)));
        let all: Vec<IpAddr> = std::iter::from_fn(|| pool.allocate(at(0)).ok()).collect();
        assert_eq!(all, expected.iter().map(|text| ip(text)).collect::<Vec<_>>());
        assert_eq!(pool.allocate(at(0)), Err(AddressError::Full { used: expected.len() }));
    };
    check(&["10.0.0.0/30"], "10.0.0.1", &["10.0.0.2"]);
    check(
        &["10.0.0.8/29", "10.0.0.0/30"],
        "10.0.0.9",
        &["10.0.0.2", "10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"],
    );
    check(&["fd00::/126"], "fd00::1", &["fd00::2", "fd00::3"]);
}

#[test]
fn address_is_reused_late_and_only_after_its_cool_down() {
    let mut pool = pool(&["10.0.0.0/29"]);
    assert_eq!(pool.allocate(at(0)), Ok(ip("10.0.0.2")));
    assert!(pool.release(ip("10.0.0.2"), at(0)));
    assert!(!pool.release(ip("10.0.0.2"), at(0)), "twice");
    for last in 3..=6 {
        assert_eq!(
            pool.allocate(at(100)),
            Ok(ip(&format!("10.0.0.{last}"))),
            "rested, but the search goes on"
        );
    }
    assert_eq!(pool.allocate(at(100)), Ok(ip("10.0.0.2")));
    pool.release(ip("10.0.0.4"), at(100));
    let resting = AddressError::Cooling { used: 4, cooling: 1, wait: at(59) };
    assert_eq!(pool.allocate(at(101)), Err(resting.clone()));
    assert_eq!(pool.allocate_exact(ip("10.0.0.4"), at(101)), Err(resting));
    assert_eq!(pool.allocate(at(160)), Ok(ip("10.0.0.4")));
}

#[test]
fn exact_address_is_given_once_and_only_from_the_pool() {
    let mut pool = pool(&["10.0.0.0/24"]);
    assert_eq!(pool.allocate_exact(ip("10.0.0.9"), at(0)), Ok(()));
    assert_eq!(pool.allocate_exact(ip("10.0.0.9"), at(0)), Err(AddressError::InUse(ip("10.0.0.9"))));
    for bad in ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.2", "fd00::2"] {
        assert_eq!(pool.allocate_exact(ip(bad), at(0)), Err(AddressError::NotOurs(ip(bad))));
    }
    pool.release(ip("10.0.0.9"), at(0));
    assert_eq!(pool.restore(ip("10.0.0.9")), Ok(()), "a restart takes back also what rests");
    assert_eq!(pool.fill(), PoolFill { capacity: 253, used: 1, cooling: 0 });
}

#[test]
fn block_is_added_once_and_removed_when_unused() {
    let mut pool = pool(&["10.0.0.0/29"]);
    let parse = |text: &str| text.parse().unwrap();
    assert!(matches!(pool.add_block(parse("10.0.0.0/24")), Err(AddressError::Overlap(..))));
    assert!(matches!(pool.add_block(parse("10.1.0.0/31")), Err(AddressError::TooSmall(_))));
    assert!(matches!(pool.add_block(parse("fd00::/64")), Err(AddressError::Family(_))));
    pool.add_block(parse("10.0.0.8/29")).unwrap();
    pool.restore(ip("10.0.0.10")).unwrap();
    let used = AddressError::BlockInUse { cidr: parse("10.0.0.8/29"), used: 1 };
    assert_eq!(pool.remove_block(parse("10.0.0.8/29")), Err(used));
    pool.release(ip("10.0.0.10"), at(0));
    assert_eq!(pool.remove_block(parse("10.0.0.8/29")), Ok(()));
    assert_eq!(pool.fill(), PoolFill { capacity: 5, used: 0, cooling: 0 });
    assert!(matches!(pool.remove_block(parse("10.0.0.8/29")), Err(AddressError::NoSuchBlock(_))));
}

/// Against a model that only remembers who is used, and until when who rests.
#[test]
fn pool_gives_no_address_twice_or_early_in_a_random_walk() {
    for seed in 0..50u64 {
        let mut state = seed;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let mut pool = pool(&["10.0.0.0/28", "10.0.0.32/28", "10.0.0.16/28"]);
        let mut used: Vec<IpAddr> = Vec::new();
        let mut rests_until: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        let mut now = at(0);
        for _ in 0..2_000 {
            now += at(below(5));
            if below(2) == 0 && !used.is_empty() {
                let gone = used.swap_remove(below(used.len() as u64) as usize);
                assert!(pool.release(gone, now), "seed {seed}");
                rests_until.insert(gone, now + REST);
                continue;
            }
            rests_until.retain(|_, until| *until > now);
            match pool.allocate(now) {
                Ok(address) => {
                    assert!(!used.contains(&address), "seed {seed}: {address} twice");
                    assert!(!rests_until.contains_key(&address), "seed {seed}: {address} early");
                    used.push(address);
                }
                Err(_) => assert_eq!(used.len() + rests_until.len(), 39, "seed {seed}: refused with room"),
            }
            let fill = PoolFill { capacity: 39, used: used.len(), cooling: rests_until.len() };
            assert_eq!(pool.fill(), fill, "seed {seed}");
        }
    }
}

#[test]
fn block_overlaps_one_that_is_larger_or_smaller() {
    let parse = |text: &str| text.parse().unwrap();
    for (there, added, overlaps) in [
        ("10.0.0.0/24", "10.0.0.0/29", true),
        ("10.0.0.0/24", "10.0.0.64/29", true),
        ("10.0.0.64/29", "10.0.0.0/24", true),
        ("10.0.0.0/24", "10.0.0.0/24", true),
        ("10.0.0.0/24", "10.0.1.0/29", false),
    ] {
        let refused = matches!(pool(&[there]).add_block(parse(added)), Err(AddressError::Overlap(..)));
        assert_eq!(refused, overlaps, "{there} {added}");
    }
}

#[test]
fn search_goes_on_at_the_last_address_of_a_free_range() {
    let mut pool = pool(&["10.0.0.0/29"]);
    pool.allocate_exact(ip("10.0.0.5"), at(0)).unwrap();
    assert!(pool.release(ip("10.0.0.5"), at(0)));
    assert_eq!(pool.allocate(at(100)), Ok(ip("10.0.0.6")), "behind the one that was given out last");
    assert_eq!(pool.allocate(at(100)), Ok(ip("10.0.0.2")));
}

#[test]
fn pool_tells_what_is_used_and_how_full_each_block_is() {
    let mut pool = pool(&["10.0.0.0/29", "10.0.0.16/28"]);
    pool.allocate_exact(ip("10.0.0.3"), at(0)).unwrap();
    pool.allocate_exact(ip("10.0.0.20"), at(0)).unwrap();
    pool.allocate_exact(ip("10.0.0.21"), at(0)).unwrap();
    pool.release(ip("10.0.0.21"), at(0));
    let used = ["10.0.0.3", "10.0.0.20", "10.0.0.21", "10.0.0.4"].map(|address| pool.is_used(ip(address)));
    assert_eq!(used, [true, true, false, false]);
    assert!(!pool.is_used("::a00:3".parse().unwrap()), "the same number in the other family");
    let fill = |block: &str| pool.block_fill(block.parse().unwrap());
    assert_eq!(fill("10.0.0.0/29"), Some(PoolFill { capacity: 5, used: 1, cooling: 0 }));
    assert_eq!(fill("10.0.0.16/28"), Some(PoolFill { capacity: 13, used: 1, cooling: 1 }));
    assert_eq!(fill("10.0.0.32/28"), None);
    assert_eq!(pool.block_of(ip("10.0.0.21")), Some("10.0.0.16/28".parse().unwrap()));
    assert_eq!(pool.blocks().count(), 2);
}

#[test]
fn removed_block_leaves_no_address_behind() {
    let mut pool = pool(&["10.0.0.0/29", "10.0.0.16/30"]);
    for address in ["10.0.0.2", "10.0.0.3", "10.0.0.4"] {
        pool.allocate_exact(ip(address), at(0)).unwrap();
    }
    // Free again one after the other, each beside ranges that are free already.
    for (address, seconds) in [("10.0.0.2", 0), ("10.0.0.4", 10), ("10.0.0.3", 20)] {
        assert!(pool.release(ip(address), at(seconds)));
    }
    assert_eq!(pool.allocate(at(100)), Ok(ip("10.0.0.5")));
    assert!(pool.release(ip("10.0.0.5"), at(100)));
    // One rests still.
    pool.remove_block("10.0.0.0/29".parse().unwrap()).unwrap();
    assert_eq!(pool.allocate(at(300)), Ok(ip("10.0.0.18")));
    assert_eq!(pool.allocate(at(300)), Err(AddressError::Full { used: 1 }));
}
