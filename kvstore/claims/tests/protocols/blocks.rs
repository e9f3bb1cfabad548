//! Blocks: which one a node gets, gets back, and gives back.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use kvstore_claims::{CidrClaim, CidrGrant, CidrRelease, ClaimError, FleetView};
use kvstore_schema::{
    KvOp, KvRequest, Revision, Txn,
    record::{CidrRecord, ClaimEpoch, ClaimState, Life, Record},
};

use crate::bench::{Bench, node, restoring};

fn bench(pool: &str) -> Bench {
    Bench::fleet(pool, &[])
}

fn cidr(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn record(node_name: &str, state: ClaimState, token: &str, since: Option<ClaimEpoch>) -> CidrRecord {
    CidrRecord { node: node(node_name), state, token: token.to_owned(), since, unknown: Default::default() }
}

/// Writes a claim's record by hand.
fn set(bench: &mut Bench, block: &str, record: &CidrRecord) {
    let key = bench.schema.cidr(cidr(block));
    let put = KvOp::Put { key, value: record.encode(), lease: None };
    assert!(bench.succeeded(&KvRequest::Txn(Txn::new().then(put))));
}

fn delete(bench: &mut Bench, block: &str) {
    let key = bench.schema.cidr(cidr(block));
    assert!(bench.succeeded(&KvRequest::Txn(Txn::new().then(KvOp::Delete(key)))));
}

/// The claim of `n1` with the token `t`.
fn claim(bench: &mut Bench, view: &FleetView) -> Result<CidrGrant, ClaimError> {
    let started = CidrClaim::start(view, node("n1"), "t".to_owned(), &BTreeSet::new())?;
    bench.run_with(started, view, |_, _| false)
}

fn stored(bench: &Bench, block: &str) -> CidrRecord {
    bench.view().cidrs()[&cidr(block)].record.clone()
}

#[test]
fn block_of_a_new_node_is_at_the_place_of_its_name() {
    for (name, expected) in [("n1", "10.0.164.0/24"), ("n2", "10.0.227.0/24"), ("rack-7", "10.0.71.0/24")] {
        let bench = bench("10.0.0.0/16");
        let started = CidrClaim::start(&bench.view(), node(name), "t".to_owned(), &BTreeSet::new()).unwrap();
        let KvRequest::Txn(txn) = started.1 else { panic!("a transaction") };
        let home = bench.schema.cidr(cidr(expected));
        let claims = txn.then.iter().any(|op| matches!(op, KvOp::Put { key, .. } if *key == home));
        assert!(claims, "{name}: {txn:?}");
    }
    // The next one of the pool, from its end on to its begin.
    let mut bench = bench("10.0.0.0/23");
    let view = bench.view();
    let first = claim(&mut bench.clone(), &view).unwrap().cidr;
    let other = [cidr("10.0.0.0/24"), cidr("10.0.1.0/24")].into_iter().find(|block| *block != first).unwrap();
    set(&mut bench, &first.to_string(), &record("n2", ClaimState::Live, "x", None));
    for view in [bench.view(), view] {
        assert_eq!(claim(&mut bench.clone(), &view).unwrap().cidr, other, "known to the view or not");
    }
}

#[test]
fn block_that_is_live_is_adopted_before_a_quarantined_one() {
    let mut bench = bench("10.0.0.0/16");
    for (block, state) in [
        ("10.0.1.0/24", ClaimState::Quarantined),
        ("10.0.2.0/24", ClaimState::Live),
        ("10.0.3.0/24", ClaimState::Quarantined),
    ] {
        set(&mut bench, block, &record("n1", state, "former", None));
    }
    let mut held = BTreeSet::new();
    for expected in ["10.0.2.0/24", "10.0.1.0/24", "10.0.3.0/24"] {
        let view = bench.view();
        let started = CidrClaim::start(&view, node("n1"), "t".to_owned(), &held).unwrap();
        let grant = bench.run(started).unwrap();
        assert_eq!((grant.cidr, grant.adopted), (cidr(expected), true));
        assert_eq!(stored(&bench, expected), record("n1", ClaimState::Live, "t", None));
        held.insert(grant.cidr);
    }
}

#[test]
fn block_in_the_way_is_taken_adopted_or_stepped_over() {
    let mut bench = bench("10.0.0.0/16");
    let view = bench.view();
    let home = claim(&mut bench.clone(), &view).unwrap().cidr.to_string();
    let met = |record: CidrRecord| {
        let mut bench = bench.clone();
        set(&mut bench, &home, &record);
        let before = bench.store.revision();
        let grant = claim(&mut bench, &view).unwrap();
        (grant.cidr.to_string() == home, grant.adopted, bench.store.revision() > before)
    };
    // Taken home, adopted, written.
    assert_eq!(met(record("n1", ClaimState::Live, "t", None)), (true, false, false), "an answer was lost");
    assert_eq!(met(record("n1", ClaimState::Quarantined, "t", None)), (true, true, true));
    assert_eq!(met(record("n1", ClaimState::Live, "former", None)), (true, true, true));
    assert_eq!(met(record("n2", ClaimState::Live, "t", None)), (false, false, true));
    assert_eq!(met(record("n2", ClaimState::Quarantined, "former", None)), (false, false, true));
    // Unreadable: somebody's claim all the same, known to the view or not.
    let key = bench.schema.cidr(cidr(&home));
    let bad = KvOp::Put { key, value: b"{}".as_slice().into(), lease: None };
    assert!(bench.succeeded(&KvRequest::Txn(Txn::new().then(bad))));
    for view in [view, bench.view()] {
        assert_ne!(claim(&mut bench.clone(), &view).unwrap().cidr.to_string(), home);
    }
}

#[test]
fn block_that_the_view_has_and_the_store_has_lost_is_not_adopted() {
    let mut bench = bench("10.0.0.0/16");
    set(&mut bench, "10.0.2.0/24", &record("n1", ClaimState::Live, "former", None));
    let view = bench.view();
    delete(&mut bench, "10.0.2.0/24");
    let grant = claim(&mut bench, &view).unwrap();
    assert!(!grant.adopted);
    assert_ne!(grant.cidr, cidr("10.0.2.0/24"));
}

#[test]
fn last_free_block_is_claimed_after_the_guard_alone_failed() {
    let mut bench = bench("10.0.0.0/24");
    let view = bench.view();
    bench.set_life(Life { restoring: false, ..restoring(1) });
    assert_eq!(claim(&mut bench, &view).map(|grant| grant.cidr), Ok(cidr("10.0.0.0/24")));
}

#[test]
fn block_of_a_former_generation_goes_to_the_later_claim() {
    let epoch = |revision: i64| ClaimEpoch { life: 0, revision: Revision(revision) };
    let again = |found: Option<CidrRecord>| {
        let mut bench = bench("10.0.0.0/16");
        bench.set_life(restoring(1));
        if let Some(found) = &found {
            set(&mut bench, "10.0.2.0/24", found);
        }
        let before = bench.store.revision();
        let view = bench.view();
        let started = CidrClaim::again(&view, node("n1"), "t".to_owned(), cidr("10.0.2.0/24"), epoch(50));
        let grant = bench.run(started)?;
        assert_eq!(grant.since, stored(&bench, "10.0.2.0/24").since.unwrap());
        assert_eq!(stored(&bench, "10.0.2.0/24").node, node("n1"));
        Ok((grant.since.revision.0, grant.adopted, bench.store.revision() > before))
    };
    let check = |found: Option<(&str, ClaimState, &str, i64)>, expected| {
        let found = found.map(|(node, state, token, since)| record(node, state, token, Some(epoch(since))));
        assert_eq!(again(found.clone()), Ok(expected), "{found:?}");
    };
    use ClaimState::{Live, Quarantined};
    check(None, (50, false, true));
    check(Some(("n1", Live, "former", 50)), (50, true, true));
    check(Some(("n1", Live, "former", 70)), (50, true, true));
    check(Some(("n1", Quarantined, "t", 50)), (50, true, true));
    check(Some(("n2", Live, "t", 49)), (50, true, true));
    check(Some(("n2", Live, "other", 50)), (50, true, true));
    // Written by this attempt, whose answer was lost.
    check(Some(("n1", Live, "t", 50)), (50, false, false));
    let lost = again(Some(record("n2", Live, "other", Some(epoch(51)))));
    assert!(matches!(lost, Err(ClaimError::ClaimLost { .. })), "{lost:?}");
}

#[test]
fn block_is_released_once_and_by_its_owner_only() {
    let mut bench = bench("10.0.0.0/16");
    let view = bench.view();
    let grant = claim(&mut bench, &view).unwrap();
    let block = grant.cidr.to_string();
    let release = |bench: &mut Bench, grant: &CidrGrant| {
        let started = CidrRelease::start(&bench.schema, node("n1"), grant.clone());
        bench.run(started)
    };
    let state = |bench: &Bench| stored(bench, &block).state;

    let mut plain = bench.clone();
    assert_eq!(release(&mut plain, &grant), Ok(()));
    assert_eq!(stored(&plain, &block), record("n1", ClaimState::Quarantined, "t", None));
    let before = plain.store.revision();
    assert_eq!((release(&mut plain, &grant), plain.store.revision()), (Ok(()), before), "twice");
    delete(&mut plain, &block);
    assert_eq!(release(&mut plain, &grant), Ok(()), "gone");

    // Rewritten with a field of a newer version.
    let mut rewritten = bench.clone();
    let mut newer = record("n1", ClaimState::Live, "t", None);
    newer.unknown.insert("zone".to_owned(), "a".into());
    set(&mut rewritten, &block, &newer);
    assert_eq!(release(&mut rewritten, &grant), Ok(()));
    assert_eq!(stored(&rewritten, &block), CidrRecord { state: ClaimState::Quarantined, ..newer });

    // Adopted by a later agent; claimed anew with the same token; of another claim that rests already.
    let check = |other: Option<ClaimState>, token: &str| {
        let mut bench = bench.clone();
        let before = match other {
            Some(state) => {
                delete(&mut bench, &block);
                state
            }
            None => ClaimState::Live,
        };
        set(&mut bench, &block, &record("n1", before, token, None));
        let lost = release(&mut bench, &grant);
        assert!(matches!(lost, Err(ClaimError::ClaimLost { .. })), "{lost:?}");
        assert_eq!(state(&bench), before);
    };
    check(None, "later");
    check(Some(ClaimState::Live), "t");
    check(Some(ClaimState::Quarantined), "t");

    // A claim of a former generation keeps its age.
    let since = ClaimEpoch { life: 0, revision: Revision(7) };
    let mut aged = bench.clone();
    assert_eq!(release(&mut aged, &CidrGrant { since, ..grant.clone() }), Ok(()));
    assert_eq!(stored(&aged, &block).since, Some(since));
}
