//! Services over the in-memory store: what is written with what, what is refused, and answers that got lost.

use identity::ServiceName;
use kvstore_claims::{
    ClaimError, Expected, FleetJoin, FleetView, Machine, NodeRegistration, Protocol, ServiceOutcome,
    ServiceRemoval, ServiceWrite, Step,
};
use kvstore_schema::{
    KvFailure, KvOp, KvRequest, Revision, Schema, StoreIdentity, Txn,
    record::{FleetRecord, NodeRecord, Record},
    service::{ServiceSpec, VipRecord},
};
use kvstore_store::MemState;

struct Bench {
    store: MemState,
    schema: Schema,
}

impl Bench {
    /// A fleet with two virtual IPs to give, and a node at 192.0.2.1.
    fn new() -> Self {
        let mut bench =
            Self { store: MemState::new(StoreIdentity(1)), schema: Schema::new(&"t".parse().unwrap()) };
        bench.run(FleetJoin::start(&bench.schema, fleet(&["10.201.0.0/30"]))).unwrap();
        let node = NodeRecord {
            underlay: vec!["192.0.2.1".parse().unwrap()],
            moves: 0,
            datapath_mode: None,
            cidrs: Vec::new(),
            gateway: None,
            gossip_port: 7946,
            labels: Default::default(),
            boot_id: "b".to_owned(),
            machine_id: "m".to_owned(),
            incarnation: 1,
            agent_version: "t".to_owned(),
            unknown: Default::default(),
        };
        bench.run(NodeRegistration::start(&bench.schema, "n1".parse().unwrap(), node, None)).unwrap();
        bench
    }

    fn view(&self) -> FleetView {
        let mut view = FleetView::new(self.schema.clone());
        view.apply_list(self.store.list(&self.schema.root(), None, None, usize::MAX).unwrap());
        view
    }

    fn run<P: Protocol>(&mut self, started: (Machine<P>, KvRequest)) -> Result<P::Output, ClaimError> {
        let view = self.view();
        self.run_with(started, &view, |_, _| false)
    }

    /// `lose`: whether the answer to the request of this number gets lost, after it was carried out.
    fn run_with<P: Protocol>(
        &mut self,
        (mut machine, first): (Machine<P>, KvRequest),
        view: &FleetView,
        lose: impl Fn(&mut MemState, u64) -> bool,
    ) -> Result<P::Output, ClaimError> {
        let mut step = Step::Ask(first);
        for draw in 0..100 {
            step = match step {
                Step::Ask(request) => {
                    let answer = self.store.execute(&request);
                    let lost = lose(&mut self.store, draw);
                    let answer = if lost { Err(KvFailure::Ambiguous("lost".to_owned())) } else { answer };
                    machine.on_outcome(answer, view, draw)
                }
                Step::Wait { .. } => machine.resume(),
                Step::Done(output) => return Ok(output),
                Step::Failed(error) => return Err(error),
            };
        }
        panic!("it does not end")
    }

    fn write(&mut self, service: &str, spec: ServiceSpec) -> Result<(ServiceOutcome, String), ClaimError> {
        let started = ServiceWrite::start(&self.view(), name(service), spec, Expected::Any);
        let written = self.run(started)?;
        Ok((written.outcome, written.record.virtual_ip.to_string()))
    }

    fn delete(&mut self, service: &str) -> Result<bool, ClaimError> {
        self.run(ServiceRemoval::start(&self.schema, name(service), Expected::Any))
    }

    /// `address=service` of every claim, and the services: they say the same.
    fn claims(&self) -> Vec<String> {
        let view = self.view();
        let of_services: Vec<String> = view
            .services()
            .iter()
            .map(|(name, entry)| format!("{}={name}", entry.record.virtual_ip))
            .collect();
        let mut claims: Vec<String> =
            view.vips().iter().map(|(address, vip)| format!("{address}={}", vip.record.service)).collect();
        claims.sort();
        let mut sorted = of_services;
        sorted.sort();
        assert_eq!(claims, sorted, "claims and services differ");
        claims
    }
}

fn fleet(service_pools: &[&str]) -> FleetRecord {
    FleetRecord {
        fleet_id: "f".to_owned(),
        pools: vec!["10.0.0.0/16".parse().unwrap()],
        service_pools: service_pools.iter().map(|pool| pool.parse().unwrap()).collect(),
        block_prefix_v4: 24,
        block_prefix_v6: 64,
        tunnel_port: 8472,
        life: Default::default(),
        unknown: Default::default(),
    }
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// A service of one port; `virtual_ip`: `auto` or an address.
fn spec(virtual_ip: &str, port: u16) -> ServiceSpec {
    let json = format!(r#"{{"virtualIp":"{virtual_ip}","ports":[{{"port":{port}}}],"selector":{{}}}}"#);
    let spec: ServiceSpec = serde_json::from_str(&json).unwrap();
    spec.normalised()
}

use ServiceOutcome::{Changed, Created, Unchanged};

#[test]
fn a_service_keeps_its_address_until_it_goes() {
    let mut bench = Bench::new();
    let (outcome, first) = bench.write("web", spec("auto", 80)).unwrap();
    assert_eq!(outcome, Created);
    assert_eq!(bench.write("web", spec("auto", 80)).unwrap(), (Unchanged, first.clone()));
    assert_eq!(bench.write("web", spec("auto", 81)).unwrap(), (Changed, first.clone()));
    assert_eq!(bench.write("web", spec("192.0.2.77", 81)).unwrap(), (Changed, "192.0.2.77".to_owned()));
    assert_eq!(bench.claims(), ["192.0.2.77=web"]);
    assert_eq!(bench.delete("web"), Ok(true));
    assert_eq!(bench.delete("web"), Ok(false));
    assert_eq!(bench.claims(), Vec::<String>::new());
    assert_eq!(bench.write("web", spec("auto", 80)).unwrap(), (Created, first));
}

#[test]
fn an_address_has_one_service() {
    let mut bench = Bench::new();
    let mut given =
        [("a", "auto"), ("b", "auto")].map(|(service, ip)| bench.write(service, spec(ip, 80)).unwrap().1);
    given.sort();
    assert_eq!(given, ["10.201.0.1", "10.201.0.2"]);
    let refused = |bench: &mut Bench, ip: &str, expected: &str| {
        let error = bench.write("c", spec(ip, 80)).unwrap_err().to_string();
        assert!(error.contains(expected), "{ip}: {error}");
    };
    refused(&mut bench, "auto", "no virtual IP is free: service pools 10.201.0.0/30 hold 2");
    let of = bench.claims()[0].clone();
    refused(&mut bench, "10.201.0.1", &format!("10.201.0.1 belongs to service {}", &of[of.len() - 1..]));
    refused(&mut bench, "10.0.3.4", "10.0.3.4 lies in pool 10.0.0.0/16, where endpoints get theirs");
    refused(&mut bench, "192.0.2.1", "192.0.2.1 is node n1's");
    assert_eq!(bench.delete("a"), Ok(true));
    assert_eq!(bench.write("c", spec("auto", 80)).unwrap().0, Created);
    bench.claims();
}

#[test]
fn a_view_that_is_behind_gives_no_address_twice() {
    let mut bench = Bench::new();
    let old = bench.view();
    let (_, taken) = bench.write("a", spec("auto", 80)).unwrap();
    let started = ServiceWrite::start(&old, name("b"), spec("auto", 80), Expected::Any);
    let written = bench.run_with(started, &old, |_, _| false).unwrap();
    assert_ne!(written.record.virtual_ip.to_string(), taken);
    let started = ServiceWrite::start(&old, name("c"), spec("auto", 80), Expected::Any);
    let error = bench.run_with(started, &old, |_, _| false).unwrap_err();
    assert!(matches!(error, ClaimError::ServicePoolExhausted { .. }), "{error}");
    bench.claims();
}

#[test]
fn who_expects_another_revision_is_refused() {
    let mut bench = Bench::new();
    let write = |bench: &mut Bench, port, expected| {
        let started = ServiceWrite::start(&bench.view(), name("web"), spec("auto", port), expected);
        bench.run(started)
    };
    let first = write(&mut bench, 80, Expected::Any).unwrap().revision;
    let second = write(&mut bench, 81, Expected::Revision(first)).unwrap().revision;
    let error = write(&mut bench, 82, Expected::Revision(first)).unwrap_err().to_string();
    assert!(error.contains(&format!("expected revision {first}, found {second}")), "{error}");
    let remove =
        |bench: &mut Bench, expected| bench.run(ServiceRemoval::start(&bench.schema, name("web"), expected));
    assert!(matches!(remove(&mut bench, Expected::Revision(first)), Err(ClaimError::ServiceChanged { .. })));
    assert_eq!(remove(&mut bench, Expected::Revision(second)), Ok(true));
    let error = write(&mut bench, 82, Expected::Revision(second)).unwrap_err().to_string();
    assert!(error.contains("found none"), "{error}");
}

#[test]
fn an_answer_that_got_lost_changes_nothing_twice() {
    let mut bench = Bench::new();
    let all_lost_once = |_: &mut MemState, step: u64| step % 4 < 2;
    for (port, expected) in [(80, Created), (81, Changed), (81, Unchanged)] {
        let view = bench.view();
        let started = ServiceWrite::start(&view, name("web"), spec("auto", port), Expected::Any);
        assert_eq!(bench.run_with(started, &view, all_lost_once).unwrap().outcome, expected);
        bench.claims();
    }
    let view = bench.view();
    let started = ServiceRemoval::start(&bench.schema, name("web"), Expected::Any);
    assert_eq!(bench.run_with(started, &view, all_lost_once), Ok(true));
    assert_eq!(bench.claims(), Vec::<String>::new());
}

/// The answer to a deletion is lost, and somebody makes a service of that name before it is asked again.
#[test]
fn a_deletion_that_is_repeated_spares_the_successor() {
    let mut bench = Bench::new();
    bench.write("web", spec("auto", 80)).unwrap();
    let view = bench.view();
    let schema = bench.schema.clone();
    let successor = |store: &mut MemState, step: u64| {
        // Step 0 reads, step 1 deletes.
        if step != 1 {
            return false;
        }
        let mut other = Bench { store: store.clone(), schema: schema.clone() };
        other.write("web", spec("auto", 443)).unwrap();
        *store = other.store;
        true
    };
    let started = ServiceRemoval::start(&bench.schema, name("web"), Expected::Any);
    assert_eq!(bench.run_with(started, &view, successor), Ok(true));
    assert_eq!(bench.view().services()[&name("web")].record.spec, spec("auto", 443));
    bench.claims();
}

/// A record that somebody broke by hand: it is deleted without knowing its address, and its successor takes the claim
/// that was left over.
#[test]
fn a_claim_without_its_service_goes_to_the_next_of_its_name() {
    let mut bench = Bench::new();
    let vip = VipRecord { service: name("web"), unknown: Default::default() };
    let put = |key, value| KvOp::Put { key, value, lease: None };
    let claim = put(bench.schema.vip("192.0.2.77".parse().unwrap()), vip.encode());
    let broken = put(bench.schema.service(&name("web")), b"{}".as_slice().into());
    bench.store.execute(&KvRequest::Txn(Txn::new().then(claim).then(broken))).unwrap();
    let error = bench.write("web", spec("192.0.2.77", 80)).unwrap_err().to_string();
    assert!(error.contains("services/web stands in the way and cannot be read"), "{error}");
    assert_eq!(bench.delete("web"), Ok(true));
    assert_eq!(bench.write("web", spec("192.0.2.77", 80)).unwrap().0, Created);
    assert_eq!(bench.claims(), ["192.0.2.77=web"]);
}

#[test]
fn a_fleet_gets_the_service_pools_of_the_first_node_that_has_some() {
    let mut bench =
        Bench { store: MemState::new(StoreIdentity(1)), schema: Schema::new(&"t".parse().unwrap()) };
    let join = |bench: &mut Bench, pools: &[&str]| {
        let joined = bench.run(FleetJoin::start(&bench.schema, fleet(pools)))?;
        Ok::<_, ClaimError>((joined.record.service_pools.len(), joined.revision))
    };
    assert_eq!(join(&mut bench, &[]).unwrap().0, 0);
    let error = bench.write("web", spec("auto", 80)).unwrap_err().to_string();
    assert!(error.contains("service pools (none) hold 0"), "{error}");
    let (pools, revision) = join(&mut bench, &["10.201.0.0/16"]).unwrap();
    assert_eq!((pools, revision > Revision(0)), (1, true));
    assert_eq!(join(&mut bench, &[]).unwrap(), (1, revision));
    let error = join(&mut bench, &["10.202.0.0/16"]).unwrap_err().to_string();
    assert!(error.contains("service_pools: here 10.202.0.0/16, fleet 10.201.0.0/16"), "{error}");
    assert_eq!(bench.write("web", spec("auto", 80)).unwrap().0, Created);
}
