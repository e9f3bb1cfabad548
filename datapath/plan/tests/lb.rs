//! Slot tables: each member's share, the same on all nodes, and what moves when one goes.

use std::{collections::BTreeMap, net::Ipv4Addr};

use datapath_plan::{
    Algorithm::{self, Maglev, Random},
    BackendId,
    lb::{MAX_SLOTS, Member, slots},
};
use proptest::prelude::*;

/// Members 1, 2, 3 and so on with these weights.
fn members(weights: &[u16]) -> Vec<Member> {
    let member = |(number, weight): (u32, &u16)| Member {
        id: BackendId(number),
        address: Ipv4Addr::from_bits(0x0a00_0000 + number * 257).into(),
        port: 8080,
        weight: *weight,
    };
    (1..).zip(weights).map(member).collect()
}

/// How many slots each member has.
fn shares(slots: &[BackendId]) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    slots.iter().for_each(|id| *shares.entry(id.0).or_default() += 1);
    shares
}

/// Every member's share of the table is its share of the weights, but for `tolerance` of that.
fn check_shares(algorithm: Algorithm, weights: &[u16], tolerance: f64) {
    let table = slots(algorithm, &members(weights));
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    for (id, count) in shares(&table) {
        let (share, wanted) =
            (count as f64 / table.len() as f64, f64::from(weights[id as usize - 1]) / total);
        assert!((share / wanted - 1.0).abs() <= tolerance, "{algorithm:?} {id}: {share}, not {wanted}");
    }
    assert_eq!(shares(&table).len(), weights.iter().filter(|weight| **weight > 0).count());
}

#[test]
fn slots_give_each_member_its_share() {
    for weights in [&[1][..], &[1, 1], &[1, 2, 3], &[7, 7, 7, 7, 7], &[100, 300], &[0, 1, 2]] {
        check_shares(Random, weights, 0.0);
        check_shares(Maglev, weights, 0.02);
    }
    check_shares(Random, &[60_000, 1_000], 0.02);
    check_shares(Maglev, &[1; 100], 0.01);
    check_shares(Maglev, &[1; 400], 0.01);
    check_shares(Maglev, &[1, 2, 3, 4].repeat(25), 0.02);
}

#[test]
fn slot_table_sizes_follow_the_number_of_members() {
    let size = |algorithm, count| slots(algorithm, &members(&vec![5; count])).len();
    for (count, expected) in
        [(0, 0), (1, 251), (2, 1_021), (5, 1_021), (6, 4_093), (81, 16_381), (82, MAX_SLOTS)]
    {
        assert_eq!(size(Maglev, count), expected, "{count}");
    }
    assert_eq!((size(Random, 0), size(Random, 3), size(Random, 5_000)), (0, 3, 4_096));
    assert_eq!(size(Maglev, MAX_SLOTS + 9), MAX_SLOTS, "some have no slot");
    assert!(slots(Maglev, &members(&[0, 0])).is_empty());
    assert!(slots(Random, &members(&[0, 0])).is_empty());
}

/// The share of slots that change their member though that is still there, when one of `count` goes.
fn moved(count: usize, gone: usize) -> f64 {
    let all = members(&vec![1; count]);
    let mut rest = all.clone();
    rest.remove(gone);
    let (before, after) = (slots(Maglev, &all), slots(Maglev, &rest));
    assert_eq!(before.len(), after.len(), "the same size");
    let kept: Vec<_> = before.iter().zip(&after).filter(|(before, _)| **before != all[gone].id).collect();
    let moved = kept.iter().filter(|(before, after)| before != after).count();
    moved as f64 / kept.len() as f64
}

/// Published of others: 0.55 % of 100 members and 0.98 % of 400 in a table of 65,537 slots, 1.3 % of 100 in one of
/// 16,381. Here 0.59 and 0.96, and 1.27 of 81. Which one goes matters as much: of 100 from 0.54 to 0.66 %.
#[test]
fn maglev_moves_few_slots_of_others_when_a_member_goes() {
    for (count, limit) in [(81, 0.013), (100, 0.006), (400, 0.0098)] {
        let moved: Vec<f64> = (0..count).step_by(count / 10).map(|gone| moved(count, gone)).collect();
        let mean = moved.iter().sum::<f64>() / moved.len() as f64;
        let (least, most) =
            moved.iter().fold((f64::MAX, 0.0), |(least, most), it| (it.min(least), it.max(most)));
        println!(
            "one of {count} gone: {:.2} % of the others' slots move ({:.2} to {:.2}, as to which one goes)",
            mean * 100.0,
            least * 100.0,
            most * 100.0
        );
        assert!(mean <= limit, "{count}: {mean}, at the most {limit}");
    }
}

/// Written down once: another build must choose the same.
#[test]
fn maglev_table_is_the_same_in_every_build() {
    let table = slots(Maglev, &members(&[1, 2]));
    let first: Vec<u32> = table.iter().take(16).map(|id| id.0).collect();
    assert_eq!(first, [2, 2, 2, 2, 1, 2, 1, 2, 2, 2, 2, 2, 1, 2, 2, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Order and numbers are a node's own: neither may show.
    #[test]
    fn slots_are_the_same_on_all_nodes(
        weights in proptest::collection::vec(0..9u16, 0..40),
        seed in any::<u64>(),
    ) {
        let ours = members(&weights);
        // Another order and other numbers, drawn from the seed.
        let mut theirs: Vec<Member> = ours
            .iter()
            .map(|member| Member { id: BackendId(member.id.0 + 1_000), ..*member })
            .collect();
        theirs.sort_by_key(|member| (u64::from(member.id.0) + 7).wrapping_mul(seed | 1));
        for algorithm in [Random, Maglev] {
            let here: Vec<u32> = slots(algorithm, &ours).iter().map(|id| id.0 + 1_000).collect();
            let there: Vec<u32> = slots(algorithm, &theirs).iter().map(|id| id.0).collect();
            prop_assert_eq!(here, there);
        }
    }
}
