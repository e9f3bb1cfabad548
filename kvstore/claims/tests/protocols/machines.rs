//! Fleet, nodes, blocks, identities, endpoints and the collector.

use std::{collections::BTreeSet, time::Duration};

use identity::{Identity, Labels, NodeName};
use kvstore_claims::{
    CidrClaim, CidrGrant, ClaimError, Collector, EndpointChange, EndpointResult, EndpointWrites, FleetJoin,
    FleetView, IdentityAcquire, NodeRegistration, Step, alive_request, node_removal_request,
};
use kvstore_schema::{
    KvFailure, KvOp, KvRequest, LeaseId, Revision, Txn,
    record::{FleetRecord, MAX_COUNTER, NodeRecord, Record},
};

use crate::bench::{Bench, endpoint, fleet, node, record};

fn claim(bench: &mut Bench, name: &str) -> Result<CidrGrant, ClaimError> {
    let started = CidrClaim::start(&bench.view(), node(name), format!("token of {name}"), &BTreeSet::new())?;
    bench.run(started)
}

#[test]
fn fleet_join_names_all_differing_settings() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    let wanted = FleetRecord { tunnel_port: 4789, ..fleet("10.1.0.0/16", &[]) };
    let error = bench.run(FleetJoin::start(&bench.schema, wanted)).unwrap_err().to_string();
    assert!(
        error.contains("pools: here 10.1.0.0/16, fleet 10.0.0.0/16, tunnel_port: here 4789, fleet 8472"),
        "{error}"
    );
    let same = FleetRecord { fleet_id: "mine".to_owned(), ..fleet("10.0.0.0/16", &[]) };
    let joined = bench.run(FleetJoin::start(&bench.schema, same)).unwrap();
    assert_eq!((joined.created, joined.record.fleet_id.as_str()), (false, "of 10.0.0.0/16"));
}

#[test]
fn node_name_belongs_to_the_machine_that_is_alive() {
    let mut bench = Bench::empty();
    let lease = bench.store.lease_grant(Duration::from_secs(10));
    let register = |bench: &mut Bench, machine: &str, incarnation, lease: Option<LeaseId>| {
        bench.run(NodeRegistration::start(&bench.schema, node("n1"), record(machine, incarnation), lease))
    };
    let first = register(&mut bench, "one", 5, Some(lease)).unwrap();
    let error = register(&mut bench, "two", 1, None).unwrap_err();
    assert!(matches!(&error, ClaimError::NameTaken { theirs, .. } if theirs == "one"), "{error}");
    assert!(
        !bench.succeeded(&node_removal_request(&bench.schema, &node("n1"))),
        "alive nodes are not removed"
    );

    let again = register(&mut bench, "one", 9, Some(lease)).unwrap();
    assert_eq!(again.record.incarnation, 9, "the same machine restarts under its own lease");
    assert!(!bench.succeeded(&alive_request(&bench.schema, &node("n1"), &first, lease)), "an outdated agent");

    bench.store.lease_revoke(lease);
    let second = register(&mut bench, "two", 1, None).unwrap();
    assert_eq!(second.record.incarnation, 10, "rises though the new machine's clock is behind");
    assert!(bench.succeeded(&node_removal_request(&bench.schema, &node("n1"))));
    assert!(!bench.view().nodes().contains_key(&node("n1")));
}

#[test]
fn block_is_adopted_by_its_node_and_a_full_pool_says_what_to_do() {
    let mut bench = Bench::fleet("10.0.0.0/24", &[]);
    let first = claim(&mut bench, "n1").unwrap();
    assert_eq!((first.cidr.to_string().as_str(), first.adopted), ("10.0.0.0/24", false));
    let again = claim(&mut bench, "n1").unwrap();
    assert_eq!((again.cidr, again.epoch, again.adopted), (first.cidr, first.epoch, true));
    let error = claim(&mut bench, "n2").unwrap_err().to_string();
    assert!(error.contains("10.0.0.0/24 hold 1 claimed and 0 quarantined"), "{error}");
    let stranger = claim(&mut bench, "n3");
    assert!(matches!(stranger, Err(ClaimError::PoolExhausted { .. })));
}

#[test]
fn unregistered_node_claims_nothing() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    assert_eq!(claim(&mut bench, "n3"), Err(ClaimError::NotRegistered { node: node("n3") }));
    let started = IdentityAcquire::start(&bench.view(), node("n3"), 1, Labels::default(), None, 7).unwrap();
    assert_eq!(bench.run(started), Err(ClaimError::NotRegistered { node: node("n3") }));
}

#[test]
fn label_set_gets_one_number() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    let acquire = |bench: &mut Bench, view: &FleetView, name: &str, labels: &str, draw| {
        let started =
            IdentityAcquire::start(view, node(name), 1, labels.parse().unwrap(), None, draw).unwrap();
        bench.run(started).unwrap().identity
    };
    // All start from the same, soon outdated, view.
    let view = bench.view();
    let web = acquire(&mut bench, &view, "n1", "app=web", 7);
    assert_eq!(acquire(&mut bench, &view, "n2", "app=web", 8), web, "the label set is taken");
    assert_ne!(acquire(&mut bench, &view, "n2", "app=db", 7), web, "the number is taken");
    assert!(web.is_fleet());
    assert_eq!(bench.view().refs(web).len(), 2);
}

#[test]
fn machine_ends_on_a_refusal_and_not_on_silence() {
    let bench = Bench::empty();
    let view = bench.view();
    let (mut machine, first) = FleetJoin::start(&bench.schema, fleet("10.0.0.0/16", &[]));
    let step = machine.on_outcome(Err(KvFailure::Unavailable("down".to_owned())), &view, 0);
    assert!(matches!(step, Step::Wait { .. }), "{step:?}");
    assert_eq!(machine.resume(), Step::Ask(first));
    let step = machine.on_outcome(Err(KvFailure::Refused("permission denied".to_owned())), &view, 0);
    assert_eq!(step, Step::Failed(ClaimError::Refused("permission denied".to_owned())));
}

#[test]
fn endpoint_writes_are_fenced_and_batched() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    let claim = claim(&mut bench, "n1").unwrap();
    let ip = |last: u32| claim.cidr.iter().nth(last as usize).unwrap();
    let put = |last, name: &str, epoch| EndpointChange::Put {
        ip: ip(last),
        record: endpoint(name),
        cidr: claim.cidr,
        epoch,
    };
    let write = |bench: &mut Bench, changes: Vec<EndpointChange>| {
        let started =
            EndpointWrites::start(&bench.view(), node("n1"), changes).unwrap().expect("there are changes");
        let results = bench.run(started).unwrap();
        results.into_iter().map(|(_, result)| result).collect::<Vec<_>>()
    };

    let many = (2..202).map(|last| put(last, "many", claim.epoch)).collect();
    assert!(write(&mut bench, many).iter().all(|result| matches!(result, EndpointResult::Written(_))));
    assert_eq!(bench.view().endpoint_count(), 200);

    let results = write(
        &mut bench,
        vec![put(2, "old", claim.epoch), put(3, "late", Revision(1)), put(2, "new", claim.epoch)],
    );
    let [EndpointResult::Fenced, EndpointResult::Written(old), EndpointResult::Written(_)] = results[..]
    else {
        panic!("{results:?}");
    };
    let delete = |last, name: &str, revision| EndpointChange::Delete {
        ip: ip(last),
        name: name.parse().unwrap(),
        revision,
    };
    let results =
        write(&mut bench, vec![delete(2, "old", old), delete(4, "many", Revision(1)), delete(250, "x", old)]);
    assert_eq!(results, [EndpointResult::Superseded, EndpointResult::Deleted, EndpointResult::Deleted]);
    let view = bench.view();
    assert_eq!(view.endpoints()[&node("n1")][&ip(2)].record.name.as_str(), "new");
    assert_eq!(view.endpoint_count(), 199);
}

#[test]
fn collector_takes_only_what_a_removed_node_owned_and_not_at_once() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    for name in ["n1", "n2"] {
        let claim = claim(&mut bench, name).unwrap();
        let labels: Labels = format!("app={name}").parse().unwrap();
        let started = IdentityAcquire::start(&bench.view(), node(name), 1, labels, None, 7).unwrap();
        bench.run(started).unwrap();
        let ip = claim.cidr.iter().nth(2).unwrap();
        let put = EndpointChange::Put { ip, record: endpoint("web"), cidr: claim.cidr, epoch: claim.epoch };
        let started = EndpointWrites::start(&bench.view(), node(name), vec![put]).unwrap().unwrap();
        bench.run(started).unwrap();
    }
    let rest = Duration::from_secs(100);
    let mut collector = Collector::new(rest);
    let unused = BTreeSet::new();
    // Neither has a lease: silence alone moves nothing.
    for seconds in [0, 100, 10_000] {
        assert_eq!(collector.plan(&bench.view(), &unused, Duration::from_secs(seconds), 0), None);
    }
    assert_eq!(
        collector.plan(&FleetView::new(bench.schema.clone()), &unused, rest, 0),
        None,
        "an incomplete view"
    );

    assert!(bench.succeeded(&node_removal_request(&bench.schema, &node("n1"))));
    let mut now = Duration::from_secs(20_000);
    let mut planned_at = Vec::new();
    for draw in 0..300 {
        if let Some(request) = collector.plan(&bench.view(), &unused, now, draw) {
            assert!(bench.succeeded(&request), "nobody interferes: {request:?}");
            planned_at.push((now - Duration::from_secs(20_000)).as_secs());
        }
        now += Duration::from_secs(1);
    }
    // After one quarantine the claim, reference, endpoint, and the number rests; after another both are free.
    let deadlines: Vec<bool> = planned_at.iter().map(|seconds| *seconds >= 100).collect();
    assert_eq!(deadlines, [true; 6], "{planned_at:?}");
    assert!(planned_at[4] >= 200, "{planned_at:?}");
    let view = bench.view();
    assert_eq!(view.cidrs().values().map(|claim| claim.record.node.as_str()).collect::<Vec<_>>(), ["n2"]);
    assert_eq!(view.endpoints().keys().map(NodeName::as_str).collect::<Vec<_>>(), ["n2"]);
    assert_eq!(view.refs_by_node().keys().map(NodeName::as_str).collect::<Vec<_>>(), ["n2"]);
    assert_eq!((view.identities().len(), view.identity_labels().len()), (1, 1));
}

#[test]
fn quarantine_runs_from_when_a_revision_was_seen_first() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    let number = Identity::new(4711).unwrap();
    let labels: Labels = "app=web".parse().unwrap();
    let rest = |bench: &mut Bench| {
        let id = r#"{"v":1,"labels":{"app":"web"},"state":"quarantined"}"#.to_owned();
        let by_labels = format!(r#"{{"v":1,"id":{number},"labels":{{"app":"web"}}}}"#);
        let put = |key, text: String| KvOp::Put { key, value: text.into_bytes().into(), lease: None };
        let txn = Txn::new()
            .then(put(bench.schema.identity_id(number), id))
            .then(put(bench.schema.identity_labels(&labels.digest()), by_labels));
        assert!(bench.succeeded(&KvRequest::Txn(txn)));
    };
    let unused = BTreeSet::new();
    let seconds = Duration::from_secs;
    rest(&mut bench);
    let mut collector = Collector::new(seconds(100));
    let plan = |collector: &mut Collector, bench: &Bench, at| {
        collector.plan(&bench.view(), &unused, seconds(at), 0).is_some()
    };
    assert!(!plan(&mut collector, &bench, 1_000));
    assert!(!plan(&mut collector, &bench, 1_099));
    // Revived and given up again: another rest.
    rest(&mut bench);
    assert!(!plan(&mut collector, &bench, 1_100));
    assert!(!plan(&mut collector, &bench, 1_199));
    assert!(plan(&mut collector, &bench, 1_200));
    // Known to be in use, though nobody refers to it.
    let used = [number].into();
    assert_eq!(collector.plan(&bench.view(), &used, seconds(1_300), 0), None);
    assert!(!plan(&mut collector, &bench, 1_300), "its rest begins again");
    let request = collector.plan(&bench.view(), &unused, seconds(1_400), 0).unwrap();
    assert!(bench.succeeded(&request));
    assert!(bench.view().identities().is_empty() && bench.view().identity_labels().is_empty());
}

#[test]
fn collector_spares_a_label_set_that_has_another_number() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    let labels: Labels = "app=web".parse().unwrap();
    let put = |key, text: &str| KvOp::Put { key, value: text.as_bytes().into(), lease: None };
    let number = |number| Identity::new(number).unwrap();
    let unused = bench.schema.identity_id(number(300));
    let txn = Txn::new()
        .then(put(unused, r#"{"v":1,"labels":{"app":"web"},"state":"quarantined"}"#))
        .then(put(bench.schema.identity_id(number(301)), r#"{"v":1,"labels":{"app":"web"},"state":"live"}"#))
        .then(put(bench.schema.identity_ref(number(301), &node("n1")), r#"{"v":1,"incarnation":1}"#))
        .then(put(
            bench.schema.identity_labels(&labels.digest()),
            r#"{"v":1,"id":301,"labels":{"app":"web"}}"#,
        ));
    assert!(bench.succeeded(&KvRequest::Txn(txn)));
    let mut collector = Collector::new(Duration::ZERO);
    let request = collector.plan(&bench.view(), &BTreeSet::new(), Duration::ZERO, 0).unwrap();
    assert!(bench.succeeded(&request));
    let view = bench.view();
    assert_eq!(view.identities().keys().collect::<Vec<_>>(), [&number(301)]);
    assert_eq!(view.identity_labels()[&labels.digest()].record.id, number(301));
}

#[test]
fn collector_deletes_as_much_as_fits_a_transaction() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    for last in 0..200 {
        let key = bench.schema.endpoint(&node("n1"), std::net::Ipv4Addr::new(10, 0, 0, last).into());
        let put = KvOp::Put { key, value: endpoint("web").encode(), lease: None };
        assert!(bench.succeeded(&KvRequest::Txn(Txn::new().then(put))));
    }
    assert!(bench.succeeded(&node_removal_request(&bench.schema, &node("n1"))));
    let mut collector = Collector::new(Duration::ZERO);
    let mut left = vec![bench.view().endpoint_count()];
    while let Some(request) = collector.plan(&bench.view(), &BTreeSet::new(), Duration::ZERO, 0) {
        assert!(bench.succeeded(&request), "{request:?}");
        left.push(bench.view().endpoint_count());
    }
    // 128 operations and as many conditions, two of which say that the node is removed.
    assert_eq!(left, [200, 74, 0]);
}

/// Values of exactly a mebibyte fit, and not one byte more.
#[test]
fn endpoint_writes_are_split_by_their_bytes() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    let grant = claim(&mut bench, "n1").unwrap();
    let padded = |bytes: usize| {
        let mut record = endpoint("web");
        record.unknown.insert("pad".to_owned(), "".into());
        let pad = bytes - record.encode().len();
        record.unknown.insert("pad".to_owned(), "x".repeat(pad).into());
        assert_eq!(record.encode().len(), bytes);
        record
    };
    let requests = |sizes: &[usize]| {
        let changes = sizes.iter().enumerate().map(|(index, bytes)| EndpointChange::Put {
            ip: grant.cidr.iter().nth(index + 2).unwrap(),
            record: padded(*bytes),
            cidr: grant.cidr,
            epoch: grant.epoch,
        });
        let started = EndpointWrites::start(&bench.view(), node("n1"), changes.collect()).unwrap();
        let (mut machine, KvRequest::Txn(mut txn)) = started.unwrap() else { panic!("a transaction") };
        let (mut bench, mut counts) = (bench.clone(), Vec::new());
        loop {
            counts.push(txn.then.len());
            match machine.on_outcome(bench.store.execute(&KvRequest::Txn(txn)), &bench.view(), 0) {
                Step::Ask(KvRequest::Txn(next)) => txn = next,
                Step::Done(_) => return counts,
                step => panic!("{step:?}"),
            }
        }
    };
    let quarter = 256 * 1024;
    assert_eq!(requests(&[quarter; 4]), [4]);
    assert_eq!(requests(&[quarter, quarter, quarter, quarter - 1, 300]), [4, 1]);
    assert_eq!(requests(&[quarter; 9]), [4, 4, 1]);
}

#[test]
fn endpoint_outside_its_block_is_refused() {
    let mut bench = Bench::fleet("10.0.0.0/16", &[]);
    let grant = claim(&mut bench, "n1").unwrap();
    let ip = "192.0.2.9".parse().unwrap();
    let put = EndpointChange::Put { ip, record: endpoint("web"), cidr: grant.cidr, epoch: grant.epoch };
    let refused = EndpointWrites::start(&bench.view(), node("n1"), vec![put]).err();
    assert_eq!(refused, Some(ClaimError::AddressOutside { ip }));
    assert!(EndpointWrites::start(&bench.view(), node("n1"), Vec::new()).unwrap().is_none());
}

#[test]
fn node_registration_counts_its_starts() {
    let mut bench = Bench::empty();
    let register = |bench: &mut Bench, incarnation, boot: &str| {
        let wanted = NodeRecord { boot_id: boot.to_owned(), ..record("one", incarnation) };
        let registered = bench.run(NodeRegistration::start(&bench.schema, node("n1"), wanted, None)).unwrap();
        assert_eq!(bench.view().nodes()[&node("n1")].record, registered.record);
        (registered.record.incarnation, registered.revision)
    };
    let first = register(&mut bench, 5, "a");
    assert_eq!(first.0, 5);
    assert_eq!(register(&mut bench, 5, "a"), first, "written already");
    assert_eq!(register(&mut bench, 5, "b").0, 5, "the same start, another field");
    assert_eq!(register(&mut bench, 3, "c").0, 6, "the clock went back");
    assert_eq!(register(&mut bench, 9, "d").0, 9);
    // Another machine takes the name over: higher than the former one in any case.
    let take = |bench: &mut Bench, incarnation| {
        let wanted = record(&format!("machine {incarnation}"), incarnation);
        let registered = bench.run(NodeRegistration::start(&bench.schema, node("n1"), wanted, None)).unwrap();
        registered.record.incarnation
    };
    assert_eq!((take(&mut bench, 4), take(&mut bench, 20)), (10, 20));
    // At the highest counter a record stays readable.
    assert_eq!((take(&mut bench, MAX_COUNTER), take(&mut bench, 1)), (MAX_COUNTER, MAX_COUNTER));
}

#[test]
fn node_registration_is_repeated_until_its_sign_of_life_is_its_own() {
    let mut bench = Bench::empty();
    let view = bench.view();
    let lease = bench.store.lease_grant(Duration::from_secs(10));
    let start = |bench: &Bench, lease| {
        NodeRegistration::start(&bench.schema, node("n1"), record("one", 1), Some(lease))
    };
    let before = bench.store.revision();
    let started = start(&bench, lease);
    bench.run_with(started, &view, |_, step| step == 0).unwrap();
    assert_eq!(bench.store.revision(), before.next(), "the answer was lost: written once");
    assert!(bench.view().alive().contains_key(&node("n1")));
    // The record is as wanted, but the liveness key is gone, or hangs on the lease of the agent before.
    let next = bench.store.lease_grant(Duration::from_secs(10));
    let started = start(&bench, next);
    bench.run(started).unwrap();
    bench.store.lease_revoke(lease);
    assert!(bench.view().alive().contains_key(&node("n1")), "it hangs on the new lease");
    bench.store.lease_revoke(next);
    let last = bench.store.lease_grant(Duration::from_secs(10));
    let started = start(&bench, last);
    bench.run(started).unwrap();
    assert!(bench.view().alive().contains_key(&node("n1")));
}
