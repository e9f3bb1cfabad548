//! The machines one by one over the in-memory store: what is refused, and in which words.

use std::{collections::BTreeSet, time::Duration};

use identity::{Identity, Labels, NodeName};
use kvstore_claims::{
    CidrClaim, CidrGrant, ClaimError, Collector, EndpointChange, EndpointResult, EndpointWrites, FleetJoin,
    FleetView, IdentityAcquire, Machine, NodeRegistration, Protocol, Step, alive_request,
    node_removal_request,
};
use kvstore_schema::{
    KvFailure, KvRequest, KvResponse, LeaseId, Revision, Schema, StoreIdentity,
    record::{EndpointRecord, FleetRecord, NodeRecord},
};
use kvstore_store::MemState;

struct Bench {
    store: MemState,
    schema: Schema,
}

impl Bench {
    fn new() -> Self {
        Self { store: MemState::new(StoreIdentity(1)), schema: Schema::new(&"t".parse().unwrap()) }
    }

    /// A fleet with one pool and the nodes `n1`, `n2`.
    fn fleet(pool: &str) -> Self {
        let mut bench = Self::new();
        bench.run(FleetJoin::start(&bench.schema, fleet(pool))).unwrap();
        for name in ["n1", "n2"] {
            bench.run(NodeRegistration::start(&bench.schema, node(name), record(name, 1), None)).unwrap();
        }
        bench
    }

    fn view(&self) -> FleetView {
        let mut view = FleetView::new(self.schema.clone());
        view.apply_list(self.store.list(&self.schema.root(), None, None, usize::MAX).unwrap());
        view
    }

    fn run<P: Protocol>(
        &mut self,
        (mut machine, first): (Machine<P>, KvRequest),
    ) -> Result<P::Output, ClaimError> {
        let view = self.view();
        let mut step = Step::Ask(first);
        for draw in 0.. {
            step = match step {
                Step::Ask(request) => machine.on_outcome(self.store.execute(&request), &view, draw),
                Step::Wait { .. } => machine.resume(),
                Step::Done(output) => return Ok(output),
                Step::Failed(error) => return Err(error),
            };
        }
        unreachable!("every machine ends")
    }

    fn succeeded(&mut self, request: &KvRequest) -> bool {
        matches!(self.store.execute(request), Ok(KvResponse::Txn(answer)) if answer.succeeded)
    }

    fn claim(&mut self, name: &str) -> Result<CidrGrant, ClaimError> {
        let started =
            CidrClaim::start(&self.view(), node(name), format!("token of {name}"), &BTreeSet::new())?;
        self.run(started)
    }
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn fleet(pool: &str) -> FleetRecord {
    FleetRecord {
        fleet_id: format!("of {pool}"),
        pools: vec![pool.parse().unwrap()],
        service_pools: Vec::new(),
        block_prefix_v4: 24,
        block_prefix_v6: 64,
        tunnel_port: 8472,
        life: Default::default(),
        unknown: Default::default(),
    }
}

fn record(machine: &str, incarnation: u64) -> NodeRecord {
    NodeRecord {
        underlay: vec!["192.0.2.1".parse().unwrap()],
        moves: 0,
        datapath_mode: Some("tunnel".to_owned()),
        cidrs: Vec::new(),
        gateway: None,
        gossip_port: 7946,
        labels: Labels::default(),
        boot_id: "b".to_owned(),
        machine_id: machine.to_owned(),
        incarnation,
        agent_version: "t".to_owned(),
        unknown: Default::default(),
    }
}

#[test]
fn a_node_with_other_settings_is_told_all_of_them() {
    let mut bench = Bench::fleet("10.0.0.0/16");
    let wanted = FleetRecord { tunnel_port: 4789, ..fleet("10.1.0.0/16") };
    let error = bench.run(FleetJoin::start(&bench.schema, wanted)).unwrap_err().to_string();
    assert!(
        error.contains("pools: here 10.1.0.0/16, fleet 10.0.0.0/16, tunnel_port: here 4789, fleet 8472"),
        "{error}"
    );
    let same = FleetRecord { fleet_id: "mine".to_owned(), ..fleet("10.0.0.0/16") };
    let joined = bench.run(FleetJoin::start(&bench.schema, same)).unwrap();
    assert_eq!((joined.created, joined.record.fleet_id.as_str()), (false, "of 10.0.0.0/16"));
}

#[test]
fn a_name_belongs_to_the_machine_that_is_alive() {
    let mut bench = Bench::new();
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
fn a_node_gets_its_own_block_back_and_a_full_pool_says_what_to_do() {
    let mut bench = Bench::fleet("10.0.0.0/24");
    let first = bench.claim("n1").unwrap();
    assert_eq!((first.cidr.to_string().as_str(), first.adopted), ("10.0.0.0/24", false));
    let again = bench.claim("n1").unwrap();
    assert_eq!((again.cidr, again.epoch, again.adopted), (first.cidr, first.epoch, true));
    let error = bench.claim("n2").unwrap_err().to_string();
    assert!(error.contains("10.0.0.0/24 hold 1 claimed and 0 quarantined"), "{error}");
    let stranger = bench.claim("n3");
    assert!(matches!(stranger, Err(ClaimError::PoolExhausted { .. })));
}

#[test]
fn who_is_not_registered_claims_nothing() {
    let mut bench = Bench::fleet("10.0.0.0/16");
    assert_eq!(bench.claim("n3"), Err(ClaimError::NotRegistered { node: node("n3") }));
    let started = IdentityAcquire::start(&bench.view(), node("n3"), 1, Labels::default(), None, 7).unwrap();
    assert_eq!(bench.run(started), Err(ClaimError::NotRegistered { node: node("n3") }));
}

#[test]
fn equal_labels_get_one_number() {
    let mut bench = Bench::fleet("10.0.0.0/16");
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
fn a_refusal_ends_a_machine_and_a_silence_does_not() {
    let bench = Bench::new();
    let view = bench.view();
    let (mut machine, first) = FleetJoin::start(&bench.schema, fleet("10.0.0.0/16"));
    let step = machine.on_outcome(Err(KvFailure::Unavailable("down".to_owned())), &view, 0);
    assert!(matches!(step, Step::Wait { .. }), "{step:?}");
    assert_eq!(machine.resume(), Step::Ask(first));
    let step = machine.on_outcome(Err(KvFailure::Refused("permission denied".to_owned())), &view, 0);
    assert_eq!(step, Step::Failed(ClaimError::Refused("permission denied".to_owned())));
}

fn endpoint(name: &str) -> EndpointRecord {
    EndpointRecord {
        name: name.parse().unwrap(),
        identity: Identity::FLEET_MIN,
        labels_digest: Labels::default().digest(),
        labels: Labels::default(),
        terminating: false,
        unknown: Default::default(),
    }
}

#[test]
fn endpoint_writes_are_fenced_and_batched() {
    let mut bench = Bench::fleet("10.0.0.0/16");
    let claim = bench.claim("n1").unwrap();
    let ip = |last: u32| claim.cidr.iter().nth(last as usize).unwrap();
    let put = |last, name: &str, epoch| EndpointChange::Put {
        ip: ip(last),
        record: endpoint(name),
        cidr: claim.cidr,
        epoch,
    };
    let write = |bench: &mut Bench, changes: Vec<EndpointChange>| {
        let started =
            EndpointWrites::start(&bench.schema, node("n1"), changes).unwrap().expect("there are changes");
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
fn only_what_a_removed_node_owned_is_collected_and_not_at_once() {
    let mut bench = Bench::fleet("10.0.0.0/16");
    for name in ["n1", "n2"] {
        let claim = bench.claim(name).unwrap();
        let labels: Labels = format!("app={name}").parse().unwrap();
        let started = IdentityAcquire::start(&bench.view(), node(name), 1, labels, None, 7).unwrap();
        bench.run(started).unwrap();
        let ip = claim.cidr.iter().nth(2).unwrap();
        let put = EndpointChange::Put { ip, record: endpoint("web"), cidr: claim.cidr, epoch: claim.epoch };
        let started = EndpointWrites::start(&bench.schema, node(name), vec![put]).unwrap().unwrap();
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
