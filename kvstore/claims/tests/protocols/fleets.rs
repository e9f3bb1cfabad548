//! The fleet's record: created, joined, founded anew; and the mark of its store.

use kvstore_claims::{ClaimError, FleetJoin, FleetJoined, FleetView, mark_request};
use kvstore_schema::{
    KeyValue, KvOp, KvRequest, ListPage, Revision, StoreIdentity, Txn,
    record::{FleetRecord, FormerMark, Life, MarkRecord, Record},
};

use crate::bench::{Bench, fleet, restoring};

const POOL: &str = "10.0.0.0/16";

fn join(bench: &mut Bench, id: &str, service_pools: &[&str]) -> Result<FleetJoined, ClaimError> {
    let wanted = FleetRecord { fleet_id: id.to_owned(), ..fleet(POOL, service_pools) };
    bench.run(FleetJoin::start(&bench.schema, wanted))
}

#[test]
fn fleet_is_created_by_the_first_and_joined_by_the_others() {
    let mut bench = Bench::empty();
    let first = join(&mut bench, "one", &[]).unwrap();
    assert_eq!(
        (first.created, first.record.fleet_id.as_str(), first.revision),
        (true, "one", bench.store.revision())
    );
    let second = join(&mut bench, "two", &[]).unwrap();
    assert_eq!((second.created, second.record, second.revision), (false, first.record, first.revision));
    // A node that has service pools gives them to a fleet without.
    let third = join(&mut bench, "three", &["10.201.0.0/16"]).unwrap();
    assert_eq!((third.created, third.record.fleet_id.as_str()), (false, "one"));
    assert_eq!(third.record.service_pools.len(), 1);
    let fourth = join(&mut bench, "four", &["10.201.0.0/16"]).unwrap();
    assert_eq!(fourth.revision, third.revision, "nothing is written again");
}

#[test]
fn fleet_is_founded_anew_once_and_by_its_members_only() {
    let life = |number| restoring(number);
    let found = |bench: &mut Bench, id: &str, number, copy| {
        let wanted = FleetRecord { fleet_id: id.to_owned(), life: life(number), ..fleet(POOL, &[]) };
        bench.run(FleetJoin::found_anew(&bench.schema, wanted, copy))
    };
    // Emptied.
    let mut bench = Bench::empty();
    let founded = found(&mut bench, "one", 1, None).unwrap();
    assert_eq!((founded.created, founded.record.life), (true, life(1)));
    // The second member joins the generation of the first; one that knows of fewer foundings too.
    let settled = Life { restoring: false, ..life(2) };
    for there in [life(1), settled] {
        bench.set_life(there);
        let joined = found(&mut bench, "one", 1, None).unwrap();
        assert_eq!((joined.record.life, joined.revision), (there, bench.store.revision()));
    }
    // One that knows of more founds the next.
    let founded = found(&mut bench, "one", 3, Some(Revision(1))).unwrap();
    assert_eq!((founded.record.life, founded.revision), (life(3), bench.store.revision()));
    assert!(matches!(found(&mut bench, "two", 4, None), Err(ClaimError::OtherFleet { .. })));
    // A newcomer, which knows of no generation, joins whatever fleet is there.
    assert_eq!(join(&mut bench, "two", &[]).unwrap().record.life, life(3));
}

fn mark(mark: &str, before: &[(&str, i64)], modified: i64) -> KeyValue {
    let before = before
        .iter()
        .map(|(mark, revision)| FormerMark { mark: (*mark).to_owned(), revision: Revision(*revision) });
    let record = MarkRecord { mark: mark.to_owned(), before: before.collect(), unknown: Default::default() };
    KeyValue {
        key: Bench::empty().schema.mark(),
        value: record.encode(),
        create_revision: Revision(1),
        mod_revision: Revision(modified),
        lease: None,
    }
}

fn view(found: Option<KeyValue>) -> FleetView {
    let mut view = FleetView::new(Bench::empty().schema);
    let entries = found.into_iter().collect();
    view.apply_list(ListPage { entries, revision: Revision(99), store: StoreIdentity(1), more: false });
    view
}

#[test]
fn mark_tells_an_older_copy_from_the_store_that_was_seen() {
    let known = view(Some(mark("c", &[("b", 20), ("a", 10)], 30)));
    let check = |found: Option<KeyValue>, expected: bool| {
        assert_eq!(known.is_marked_by(found.as_ref()), expected, "{found:?}");
    };
    check(Some(mark("c", &[("b", 20)], 30)), true);
    check(Some(mark("d", &[("c", 30)], 40)), true);
    check(None, false);
    check(Some(mark("b", &[("a", 10)], 20)), false);
    check(Some(mark("x", &[("b", 20)], 40)), false);
    let unreadable = KeyValue { value: b"{}".as_slice().into(), ..mark("c", &[], 30) };
    check(Some(unreadable), true);
    // So many marks since that the one which is known is not named any more.
    let names: Vec<String> = (0..MarkRecord::MAX_BEFORE).map(|index| format!("m{index}")).collect();
    let many: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 50)).collect();
    check(Some(mark("z", &many, 31)), true);
    check(Some(mark("z", &many, 30)), false);
    check(Some(mark("z", &many[1..], 31)), false);
    check(Some(mark("b", &many, 31)), false);
    assert!(view(None).is_marked_by(None), "no mark is known");
}

#[test]
fn mark_names_those_before_it_and_replaces_only_the_one_that_is_known() {
    let mut bench = Bench::fleet(POOL, &[]);
    for round in 0..20 {
        let view = bench.view();
        assert!(bench.succeeded(&mark_request(&view, format!("m{round}"))));
        assert!(!bench.succeeded(&mark_request(&view, "late".to_owned())));
    }
    let view = bench.view();
    let entry = view.mark().unwrap();
    assert_eq!(entry.record.mark, "m19");
    let before: Vec<&str> = entry.record.before.iter().map(|former| former.mark.as_str()).collect();
    assert_eq!((before.len(), before[0], before[15]), (16, "m18", "m3"));
    let delete = Txn::new().then(KvOp::Delete(bench.schema.mark()));
    assert!(bench.succeeded(&KvRequest::Txn(delete)));
    assert!(bench.view().mark().is_none());
}
