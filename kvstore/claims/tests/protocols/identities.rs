//! Identities: which number a label set gets, keeps and gives back.

use identity::{Identity, Labels};
use kvstore_claims::{
    ClaimError, FleetView, IdentityAcquire, IdentityGrant, IdentityRelease, missing_refs, stray_refs,
};
use kvstore_schema::{
    Key, KvOp, KvRequest, Revision, Txn,
    record::{ClaimState, IdentityIdRecord, Record},
};
use kvstore_store::MemState;

use crate::bench::{Bench, node, restoring};

fn bench() -> Bench {
    Bench::fleet("10.0.0.0/16", &[])
}

fn web() -> Labels {
    "app=web".parse().unwrap()
}

fn acquire(bench: &mut Bench, view: &FleetView, name: &str) -> Result<IdentityGrant, ClaimError> {
    acquire_with(bench, view, name, |_, _| {})
}

/// `before`: changes the store before the request of this number.
fn acquire_with(
    bench: &mut Bench,
    view: &FleetView,
    name: &str,
    before: impl Fn(&mut MemState, u64),
) -> Result<IdentityGrant, ClaimError> {
    let started = IdentityAcquire::start(view, node(name), 1, web(), None, 7)?;
    bench.run_with(started, view, |store, step| {
        before(store, step + 1);
        false
    })
}

fn change(store: &mut MemState, ops: Vec<KvOp>) {
    store.execute(&KvRequest::Txn(ops.into_iter().fold(Txn::new(), Txn::then))).unwrap();
}

fn put(key: Key, value: &str) -> KvOp {
    KvOp::Put { key, value: value.as_bytes().into(), lease: None }
}

/// The two records of a number and a node's reference.
fn keys(bench: &Bench, number: Identity) -> [Key; 3] {
    let digest = web().digest();
    [
        bench.schema.identity_labels(&digest),
        bench.schema.identity_id(number),
        bench.schema.identity_ref(number, &node("n1")),
    ]
}

fn set_state(bench: &mut Bench, number: Identity, state: ClaimState) {
    let record = IdentityIdRecord { labels: web(), state, unknown: Default::default() };
    let key = bench.schema.identity_id(number);
    change(&mut bench.store, vec![KvOp::Put { key, value: record.encode(), lease: None }]);
}

#[test]
fn identity_is_joined_as_it_is_and_revived_from_quarantine() {
    let mut bench = bench();
    let view = bench.view();
    let number = acquire(&mut bench, &view, "n1").unwrap().identity;
    let created = bench.view().identities()[&number].modified;
    let view = bench.view();
    let grant = acquire(&mut bench, &view, "n2").unwrap();
    assert_eq!((grant.identity, grant.ref_revision), (number, bench.store.revision()));
    assert_eq!(bench.view().identities()[&number].modified, created, "a live number is not written again");
    set_state(&mut bench, number, ClaimState::Quarantined);
    let view = bench.view();
    assert_eq!(acquire(&mut bench, &view, "n2").unwrap().identity, number);
    let entry = bench.view().identities()[&number].clone();
    assert_eq!((entry.record.state, entry.modified), (ClaimState::Live, bench.store.revision()));
    // Half of a number: its own record is made again.
    let [_, id, _] = keys(&bench, number);
    change(&mut bench.store, vec![KvOp::Delete(id)]);
    let view = bench.view();
    assert_eq!(acquire(&mut bench, &view, "n2").unwrap().identity, number);
    assert_eq!(bench.view().identities()[&number].record.state, ClaimState::Live);
}

/// The view knows a number that the store has lost since.
fn lost() -> (Bench, FleetView, Identity) {
    let mut bench = bench();
    let view = bench.view();
    let number = acquire(&mut bench, &view, "n1").unwrap().identity;
    let view = bench.view();
    let all = keys(&bench, number).map(KvOp::Delete).to_vec();
    change(&mut bench.store, all);
    (bench, view, number)
}

#[test]
fn known_number_is_kept_unless_it_is_taken() {
    let (mut bench, view, number) = lost();
    assert_eq!(acquire(&mut bench, &view, "n1").unwrap().identity, number);

    // The guard alone failed: the number is still free.
    let (mut bench, view, number) = lost();
    let settled = {
        let mut other = bench.clone();
        other.set_life(kvstore_schema::record::Life { restoring: false, ..restoring(1) });
        other.view().fleet().unwrap().record.encode()
    };
    let fleet = bench.schema.fleet();
    let rewrite = || vec![KvOp::Put { key: fleet.clone(), value: settled.clone(), lease: None }];
    let grant = acquire_with(&mut bench, &view, "n1", |store, step| {
        if step == 1 {
            change(store, rewrite());
        }
    });
    assert_eq!(grant.unwrap().identity, number);

    // Somebody has the number for other labels by then, with or without a new fleet record.
    for with_rewrite in [true, false] {
        let (mut bench, view, number) = lost();
        let [_, id, _] = keys(&bench, number);
        let grant = acquire_with(&mut bench, &view, "n1", |store, step| {
            if step == 1 {
                let taken = put(id.clone(), r#"{"v":1,"labels":{"app":"db"},"state":"live"}"#);
                let rewritten = if with_rewrite { rewrite() } else { Vec::new() };
                change(store, [rewritten, vec![taken]].concat());
            }
        });
        assert_ne!(grant.unwrap().identity, number);
    }

    // A reference to the number, left over without a record.
    let (mut bench, view, number) = lost();
    let stray = bench.schema.identity_ref(number, &node("n2"));
    change(&mut bench.store, vec![put(stray, r#"{"v":1,"incarnation":1}"#)]);
    assert_ne!(acquire(&mut bench, &view, "n1").unwrap().identity, number);
}

#[test]
fn number_in_use_is_made_again_whatever_the_view_misses() {
    let mut bench = bench();
    let used = Identity::new(4711).unwrap();
    let view = bench.view();
    let started = IdentityAcquire::start(&view, node("n1"), 1, web(), Some(used), 7).unwrap();
    bench.set_life(restoring(1));
    assert_eq!(bench.run_with(started, &view, |_, _| false).map(|grant| grant.identity), Ok(used));
}

#[test]
fn label_set_of_contradicting_records_is_refused() {
    let mut bench = bench();
    let view = bench.view();
    let number = acquire(&mut bench, &view, "n1").unwrap().identity;
    let [labels, id, _] = keys(&bench, number);
    let stale = bench.view();
    for (key, value) in [
        (id, r#"{"v":1,"labels":{"app":"db"},"state":"live"}"#.to_owned()),
        (labels, format!(r#"{{"v":1,"id":{number},"labels":{{"app":"db"}}}}"#)),
    ] {
        let mut edited = bench.clone();
        change(&mut edited.store, vec![put(key, &value)]);
        let error = acquire(&mut edited, &stale, "n2").unwrap_err();
        assert!(matches!(error, ClaimError::Contradiction { identity, .. } if identity == number), "{error}");
    }
}

#[test]
fn reference_is_released_once_and_spares_a_later_agents() {
    let mut bench = bench();
    let view = bench.view();
    let grant = acquire(&mut bench, &view, "n1").unwrap();
    let release = |bench: &mut Bench, incarnation, revision| {
        let started =
            IdentityRelease::start(&bench.schema, node("n1"), incarnation, grant.identity, revision);
        bench.run(started)
    };
    let held = |bench: &Bench| !bench.view().refs(grant.identity).is_empty();
    // Another revision of our own agent's reference goes, that of a later agent stays.
    assert_eq!(release(&mut bench, 0, Revision(1)), Ok(()));
    assert!(held(&bench), "taken by agent 1, which is later than 0");
    assert_eq!(release(&mut bench, 1, Revision(1)), Ok(()));
    assert!(!held(&bench));
    assert_eq!(release(&mut bench, 1, grant.ref_revision), Ok(()), "twice");
}

#[test]
fn references_are_compared_with_the_numbers_in_use() {
    let mut bench = bench();
    let view = bench.view();
    let grant = acquire(&mut bench, &view, "n1").unwrap();
    let other = Identity::new(4711).unwrap();
    let view = bench.view();
    let (none, both) = ([].into(), [grant.identity, other].into());
    assert_eq!(stray_refs(&view, &node("n1"), &none), [(grant.identity, grant.ref_revision)]);
    assert_eq!(stray_refs(&view, &node("n1"), &both), []);
    assert_eq!(stray_refs(&view, &node("n2"), &none), []);
    assert_eq!(missing_refs(&view, &node("n1"), &both), [other]);
    assert_eq!(
        missing_refs(&view, &node("n2"), &both),
        [grant.identity, other]
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
}
