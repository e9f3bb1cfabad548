//! Nothing free is claimed while members restore: each protocol carries that as a condition of its transaction.
//!
//! Each test lets the store be founded anew behind the back of a machine, and takes the guard out of the request for the
//! counterproof: without it the free thing is claimed.

use std::collections::BTreeSet;

use identity::Labels;
use kvstore_claims::{
    BatchAdded, CidrClaim, ClaimError, EndpointChange, EndpointResult, EndpointWrites, Expected, FleetView,
    IdentityAcquire, Machine, Protocol, ServiceBatch, ServiceRemoval, ServiceWrite, Step, WaitReason,
};
use kvstore_schema::{
    Condition, KvOp, KvOpResult, KvRequest, KvResponse, Revision, Txn,
    record::{ClaimEpoch, Life},
};

use crate::bench::{Bench, endpoint, node, restoring, spec};

const SETTLED: Life = Life { restoring: false, number: 1, founded_on: Revision(1) };

fn bench() -> Bench {
    Bench::fleet("10.0.0.0/16", &["10.201.0.0/24"])
}

fn web() -> Labels {
    "app=web".parse().unwrap()
}

/// A request without the guard.
fn unguarded(request: &KvRequest) -> KvRequest {
    let KvRequest::Txn(mut txn) = request.clone() else { panic!("a transaction") };
    txn.conditions.retain(|condition| !matches!(condition, Condition::ValueIs(..)));
    KvRequest::Txn(txn)
}

/// Starts with a settled view, and asks after members have begun to restore: the machine waits and claims nothing; once
/// the fleet has settled it ends well. Without the guard it would have claimed.
fn waits<P: Protocol>(
    bench: &mut Bench,
    (mut machine, request): (Machine<P>, KvRequest),
) -> Result<P::Output, ClaimError> {
    let view = bench.view();
    bench.set_life(restoring(1));
    assert!(bench.clone().succeeded(&unguarded(&request)), "the counterproof");
    let before = bench.store.revision();
    for draw in 0..3 {
        let step = machine.on_outcome(bench.store.execute(&request), &view, draw);
        assert!(matches!(step, Step::Wait { reason: WaitReason::Restoring, .. }));
        assert!(matches!(machine.resume(), Step::Ask(again) if again == request), "the same again");
    }
    assert_eq!(bench.store.revision(), before, "nothing was written");
    bench.set_life(SETTLED);
    bench.run((machine, request))
}

/// The same of a machine that somebody waits for: it ends and says why.
fn refuses<P: Protocol>(bench: &mut Bench, (mut machine, request): (Machine<P>, KvRequest)) -> ClaimError {
    let view = bench.view();
    let mut request = request;
    // A machine that reads first has its guard in the second request.
    if let Ok(KvResponse::Txn(answer)) = bench.clone().store.execute(&request)
        && answer.results.iter().all(|result| matches!(result, KvOpResult::Got(_)))
    {
        let Step::Ask(next) = machine.on_outcome(Ok(KvResponse::Txn(answer)), &view, 0) else {
            panic!("the machine goes on")
        };
        request = next;
    }
    bench.set_life(restoring(1));
    assert!(bench.clone().succeeded(&unguarded(&request)), "the counterproof");
    let before = bench.store.revision();
    let step = machine.on_outcome(bench.store.execute(&request), &view, 0);
    assert_eq!(bench.store.revision(), before, "nothing was written");
    match step {
        Step::Failed(error) => error,
        _ => panic!("the machine goes on"),
    }
}

#[test]
fn guard_keeps_free_blocks_while_members_restore() {
    let mut bench = bench();
    let start = |view: &FleetView| CidrClaim::start(view, node("n1"), "t".to_owned(), &BTreeSet::new());
    let started = start(&bench.view()).unwrap();
    let grant = waits(&mut bench, started).unwrap();
    assert!(!grant.adopted);

    // A node that knows of the restoration does not ask, but adopts what is its own.
    bench.set_life(restoring(2));
    let started = CidrClaim::start(&bench.view(), node("n2"), "t".to_owned(), &BTreeSet::new());
    assert_eq!(started.err(), Some(ClaimError::Restoring));
    let started = start(&bench.view()).unwrap();
    assert_eq!(bench.run(started).map(|grant| grant.adopted), Ok(true));
}

#[test]
fn guard_spares_blocks_that_are_claimed_again() {
    let mut bench = bench();
    bench.set_life(restoring(1));
    let since = ClaimEpoch { life: 0, revision: Revision(7) };
    let cidr = "10.0.9.0/24".parse().unwrap();
    let started = CidrClaim::again(&bench.view(), node("n1"), "t".to_owned(), cidr, since);
    assert_eq!(bench.run(started).map(|grant| (grant.cidr, grant.since)), Ok((cidr, since)));
}

#[test]
fn guard_keeps_free_numbers_while_members_restore() {
    let mut bench = bench();
    let start = |view: &FleetView, used| IdentityAcquire::start(view, node("n1"), 1, web(), used, 7);
    let started = start(&bench.view(), None).unwrap();
    let number = waits(&mut bench, started).unwrap().identity;
    assert_eq!(bench.view().identities()[&number].record.labels, web());

    bench.set_life(restoring(2));
    let db: Labels = "app=db".parse().unwrap();
    let started = IdentityAcquire::start(&bench.view(), node("n1"), 1, db.clone(), None, 7);
    assert_eq!(started.err(), Some(ClaimError::Restoring));
    // A label set that the store knows, and one whose number the node uses, go on.
    let started = start(&bench.view(), None).unwrap();
    assert_eq!(bench.run(started).map(|grant| grant.identity), Ok(number));
    let used = identity::Identity::new(4711).unwrap();
    let started = IdentityAcquire::start(&bench.view(), node("n1"), 1, db, Some(used), 7).unwrap();
    assert_eq!(bench.run(started).map(|grant| grant.identity), Ok(used));
}

#[test]
fn guard_keeps_names_and_addresses_of_services_while_members_restore() {
    for address in ["auto", "192.0.2.77"] {
        let mut bench = bench();
        let write = |view: &FleetView| {
            ServiceWrite::start(view, "web".parse().unwrap(), spec(address, 80), Expected::Any)
        };
        let started = write(&bench.view());
        assert_eq!(refuses(&mut bench, started), ClaimError::Restoring);
        assert_eq!(bench.write("web", spec(address, 80)), Err(ClaimError::Restoring), "known to the view");
        bench.set_life(SETTLED);
        bench.write("web", spec(address, 80)).unwrap();
    }
}

#[test]
fn guard_keeps_services_from_deletion_while_members_restore() {
    let mut bench = bench();
    bench.write("web", spec("auto", 80)).unwrap();
    let started = ServiceRemoval::start(&bench.schema, "web".parse().unwrap(), Expected::Any);
    assert_eq!(refuses(&mut bench, started), ClaimError::Restoring);
    assert_eq!(bench.delete("lost"), Err(ClaimError::Restoring), "it may be written again");
    bench.set_life(SETTLED);
    assert_eq!((bench.delete("web"), bench.delete("lost")), (Ok(true), Ok(false)));
}

#[test]
fn guard_keeps_batches_of_services_while_members_restore() {
    let mut bench = bench();
    let batch = |view: &FleetView| {
        let mut batch = ServiceBatch::default();
        let added =
            ["a", "b"].map(|name| batch.add(view, &name.parse().unwrap(), &spec("auto", 80), Expected::Any));
        (batch, added)
    };
    let (stale, added) = batch(&bench.view());
    assert_eq!(added, [BatchAdded::Yes; 2]);
    bench.set_life(restoring(1));
    let started = stale.start();
    assert!(bench.clone().succeeded(&unguarded(&started.1)), "the counterproof");
    assert_eq!(bench.run(started), Ok(None), "each is written alone");
    assert_eq!(batch(&bench.view()).1, [BatchAdded::Alone; 2]);
    assert!(bench.view().services().is_empty());
}

/// A write of the former generation arrives in the next one, where the block is another node's by a claim with the same
/// create revision.
#[test]
fn guard_keeps_addresses_of_another_generations_claim() {
    let claim = |bench: &mut Bench| {
        let started =
            CidrClaim::start(&bench.view(), node("n1"), "of n1".to_owned(), &BTreeSet::new()).unwrap();
        bench.run(started).unwrap()
    };
    let mut former = bench();
    let grant = claim(&mut former);
    let ip = grant.cidr.iter().nth(2).unwrap();
    let put = |epoch| EndpointChange::Put { ip, record: endpoint("web"), cidr: grant.cidr, epoch };
    let write = |view: &FleetView, epoch| {
        EndpointWrites::start(view, node("n1"), vec![put(epoch)]).unwrap().expect("a change")
    };
    let (machine, request) = write(&former.view(), grant.epoch);

    let mut later = bench();
    assert_eq!(claim(&mut later).epoch, grant.epoch);
    let key = later.schema.cidr(grant.cidr);
    let theirs = |node: &str, token: &str| {
        let json = format!(r#"{{"v":1,"node":"{node}","state":"live","token":"{token}"}}"#);
        KvOp::Put { key: key.clone(), value: json.into_bytes().into(), lease: None }
    };
    assert!(later.succeeded(&KvRequest::Txn(Txn::new().then(theirs("n2", "of n2")))));
    let KvRequest::Txn(fenced_by_revision) = request.clone() else { panic!("a transaction") };
    let conditions = vec![Condition::CreateRevision(key.clone(), grant.epoch)];
    let fenced_by_revision = KvRequest::Txn(Txn { conditions, ..fenced_by_revision });
    assert!(later.clone().succeeded(&fenced_by_revision), "the counterproof");
    assert_eq!(later.run((machine, request)), Ok(vec![(ip, EndpointResult::Fenced)]));

    // The claim's record may change while it stays this node's: that costs one more question.
    let started = write(&former.view(), grant.epoch);
    assert!(former.succeeded(&KvRequest::Txn(Txn::new().then(theirs("n1", "adopted since")))));
    assert!(matches!(former.run(started).unwrap()[..], [(_, EndpointResult::Written(_))]));
    // Another claim, though the node is the same.
    let started = write(&former.view(), Revision(1));
    assert_eq!(former.run(started), Ok(vec![(ip, EndpointResult::Fenced)]));
}
