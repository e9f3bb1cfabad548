//! Services over the in-memory store: what is written with what, what is refused, and answers that got lost.

use identity::ServiceName;
use kvstore_claims::{
    BatchAdded, ClaimError, Expected, FleetJoin, FleetView, ServiceBatch, ServiceOutcome, ServiceRemoval,
    ServiceWrite,
};
use kvstore_schema::{
    KvOp, KvRequest, Revision, Txn,
    record::Record,
    service::{NodePort, ServiceClaim, ServiceClaimRecord, ServiceSpec},
};
use kvstore_store::MemState;

use crate::bench::{Bench, fleet, spec};

/// A fleet with two virtual IPs to give.
fn two_addresses() -> Bench {
    Bench::fleet("10.0.0.0/16", &["10.201.0.0/30"])
}

/// `claim=service` of every claim. The claims and the services say the same.
fn claims(bench: &Bench) -> Vec<String> {
    let view = bench.view();
    let mut of_services = Vec::new();
    for (name, entry) in view.services() {
        of_services.extend(entry.record.claims().iter().map(|claim| format!("{claim}={name}")));
    }
    of_services.sort();
    let claims = view.service_claims().iter();
    let mut claims: Vec<String> =
        claims.map(|(claim, entry)| format!("{claim}={}", entry.record.service)).collect();
    claims.sort();
    assert_eq!(claims, of_services, "claims and services differ");
    claims
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

use ServiceOutcome::{Changed, Created, Unchanged};

#[test]
fn service_keeps_its_address_until_it_is_deleted() {
    let mut bench = two_addresses();
    let (outcome, first) = bench.write("web", spec("auto", 80)).unwrap();
    assert_eq!(outcome, Created);
    assert_eq!(bench.write("web", spec("auto", 80)).unwrap(), (Unchanged, first.clone()));
    assert_eq!(bench.write("web", spec("auto", 81)).unwrap(), (Changed, first.clone()));
    assert_eq!(bench.write("web", spec("192.0.2.77", 81)).unwrap(), (Changed, "192.0.2.77".to_owned()));
    assert_eq!(claims(&bench), ["address 192.0.2.77=web"]);
    assert_eq!(bench.delete("web"), Ok(true));
    assert_eq!(bench.delete("web"), Ok(false));
    assert_eq!(claims(&bench), Vec::<String>::new());
    assert_eq!(bench.write("web", spec("auto", 80)).unwrap(), (Created, first));
}

#[test]
fn virtual_ip_has_one_service() {
    let mut bench = two_addresses();
    let mut given =
        [("a", "auto"), ("b", "auto")].map(|(service, ip)| bench.write(service, spec(ip, 80)).unwrap().1);
    given.sort();
    assert_eq!(given, ["10.201.0.1", "10.201.0.2"]);
    let refused = |bench: &mut Bench, ip: &str, expected: &str| {
        let error = bench.write("c", spec(ip, 80)).unwrap_err().to_string();
        assert!(error.contains(expected), "{ip}: {error}");
    };
    refused(&mut bench, "auto", "no virtual IP is free: service pools 10.201.0.0/30 hold 2");
    let of = claims(&bench)[0].clone();
    refused(&mut bench, "10.201.0.1", &format!("10.201.0.1 belongs to service {}", &of[of.len() - 1..]));
    refused(&mut bench, "10.0.3.4", "10.0.3.4 lies in pool 10.0.0.0/16, where endpoints get theirs");
    refused(&mut bench, "192.0.2.1", "192.0.2.1 is node n1's");
    assert_eq!(bench.delete("a"), Ok(true));
    assert_eq!(bench.write("c", spec("auto", 80)).unwrap().0, Created);
    claims(&bench);
}

#[test]
fn stale_view_gives_no_address_twice() {
    let mut bench = two_addresses();
    let old = bench.view();
    let (_, taken) = bench.write("a", spec("auto", 80)).unwrap();
    let started = ServiceWrite::start(&old, name("b"), spec("auto", 80), Expected::Any);
    let written = bench.run_with(started, &old, |_, _| false).unwrap();
    assert_ne!(written.record.virtual_ip.to_string(), taken);
    let started = ServiceWrite::start(&old, name("c"), spec("auto", 80), Expected::Any);
    let error = bench.run_with(started, &old, |_, _| false).unwrap_err();
    assert!(matches!(error, ClaimError::ServicePoolExhausted { .. }), "{error}");
    claims(&bench);
}

#[test]
fn service_write_that_expects_another_revision_is_refused() {
    let mut bench = two_addresses();
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
fn lost_answer_changes_nothing_twice() {
    let mut bench = two_addresses();
    let all_lost_once = |_: &mut MemState, step: u64| step % 4 < 2;
    for (port, expected) in [(80, Created), (81, Changed), (81, Unchanged)] {
        let view = bench.view();
        let started = ServiceWrite::start(&view, name("web"), spec("auto", port), Expected::Any);
        assert_eq!(bench.run_with(started, &view, all_lost_once).unwrap().outcome, expected);
        claims(&bench);
    }
    let view = bench.view();
    let started = ServiceRemoval::start(&bench.schema, name("web"), Expected::Any);
    assert_eq!(bench.run_with(started, &view, all_lost_once), Ok(true));
    assert_eq!(claims(&bench), Vec::<String>::new());
}

/// The answer to a deletion is lost, and somebody makes a service of that name before it is asked again.
#[test]
fn repeated_deletion_spares_the_successor() {
    let mut bench = two_addresses();
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
    claims(&bench);
}

/// A record that somebody broke by hand: it is deleted without knowing its address, and its successor takes the claim
/// that was left over.
#[test]
fn orphaned_claim_goes_to_the_next_service_of_its_name() {
    let mut bench = two_addresses();
    let vip = ServiceClaimRecord { service: name("web"), unknown: Default::default() };
    let put = |key, value| KvOp::Put { key, value, lease: None };
    let claim = ServiceClaim::VirtualIp("192.0.2.77".parse().unwrap());
    let claim = put(bench.schema.service_claim(&claim), vip.encode());
    let broken = put(bench.schema.service(&name("web")), b"{}".as_slice().into());
    bench.store.execute(&KvRequest::Txn(Txn::new().then(claim).then(broken))).unwrap();
    let error = bench.write("web", spec("192.0.2.77", 80)).unwrap_err().to_string();
    assert!(error.contains("services/web stands in the way and cannot be read"), "{error}");
    assert_eq!(bench.delete("web"), Ok(true));
    assert_eq!(bench.write("web", spec("192.0.2.77", 80)).unwrap().0, Created);
    assert_eq!(claims(&bench), ["address 192.0.2.77=web"]);
}

#[test]
fn fleet_gets_the_service_pools_of_the_first_node_that_has_some() {
    let mut bench = Bench::empty();
    let join = |bench: &mut Bench, pools: &[&str]| {
        let joined = bench.run(FleetJoin::start(&bench.schema, fleet("10.0.0.0/16", pools)))?;
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

/// A service of port 80; `fields`: more of its port; `outside`: more of its spec.
fn outside(fields: &str, outside: &str) -> ServiceSpec {
    let json = format!(r#"{{"selector":{{}},"ports":[{{"port":80{fields}}}]{outside}}}"#);
    let spec: ServiceSpec = serde_json::from_str(&json).unwrap();
    spec.validate().unwrap();
    spec.normalised()
}

#[test]
fn node_ports_and_external_ips_have_one_service() {
    let mut bench = two_addresses();
    let (_, vip) = bench
        .write("a", outside(r#","nodePort":30080,"hostPort":8080"#, r#","externalIps":["198.51.100.7"]"#))
        .unwrap();
    let all = |vip: &str| {
        let mut all = [vip, "node port 30080/tcp", "host port 8080/tcp", "198.51.100.7:80/tcp"]
            .map(|claim| format!("{claim}=a"));
        all.sort();
        all
    };
    assert_eq!(claims(&bench), all(&format!("address {vip}")));
    let old = two_addresses().view();
    let mut refused = |spec: ServiceSpec, expected: &str| {
        let view = bench.view();
        // The one knows of the first service, the other meets it.
        for view in [&view, &old] {
            let started = ServiceWrite::start(view, name("b"), spec.clone(), Expected::Any);
            let error = bench.run_with(started, view, |_, _| false).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    };
    let node_port = "node port 30080/tcp belongs to service a; use another one, or nodePort: auto";
    refused(outside(r#","nodePort":30080"#, ""), node_port);
    refused(outside(r#","hostPort":8080"#, ""), "host port 8080/tcp belongs to service a; use another one");
    refused(
        outside("", r#","externalIps":["198.51.100.7"]"#),
        "198.51.100.7:80/tcp belongs to service a; use",
    );
    let vip_of_a = format!(r#","externalIps":["{vip}"]"#);
    let error = bench.write("b", outside("", &vip_of_a)).unwrap_err().to_string();
    assert!(error.contains(&format!("address {vip} belongs to service a")), "{error}");

    // What is not the same is free.
    bench
        .write("b", outside(r#","nodePort":30080,"protocol":"udp""#, r#","externalIps":["198.51.100.7"]"#))
        .unwrap();
    assert_eq!(bench.delete("b"), Ok(true));
    assert_eq!(claims(&bench), all(&format!("address {vip}")));
    // What is not wanted any more is given back, what is wanted beside is taken.
    let more = outside(r#","nodePort":"auto","hostPort":8081"#, r#","externalIps":["198.51.100.8"]"#);
    assert_eq!(bench.write("a", more).unwrap(), (Changed, vip.clone()));
    let mut expected =
        [&*format!("address {vip}"), "node port 30080/tcp", "host port 8081/tcp", "198.51.100.8:80/tcp"]
            .map(|claim| format!("{claim}=a"));
    expected.sort();
    assert_eq!(claims(&bench), expected);
    assert_eq!(bench.delete("a"), Ok(true));
    assert_eq!(claims(&bench), Vec::<String>::new());
}

#[test]
fn service_gets_no_address_or_port_of_the_fleet_itself() {
    let mut bench = two_addresses();
    let mut refused = |spec: ServiceSpec, expected: &str| {
        let error = bench.write("a", spec).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let udp = r#","protocol":"udp","hostPort":"#;
    refused(
        outside(&format!("{udp}8472"), ""),
        "host port 8472/udp is the fleet's own, for the tunnel; use another",
    );
    refused(
        outside(&format!("{udp}7946"), ""),
        "host port 7946/udp is the fleet's own, for gossip; use another",
    );
    let external = |address: &str| outside("", &format!(r#","externalIps":["{address}"]"#));
    refused(external("192.0.2.1"), "address 192.0.2.1 is node n1's; use another one");
    refused(external("10.0.3.4"), "address 10.0.3.4 lies in pool 10.0.0.0/16, where endpoints get theirs");
    refused(external("10.201.0.2"), "address 10.201.0.2 lies in service pool 10.201.0.0/30");
    let fixed = r#"{"ports":[{"port":80}],"backends":[{"address":"192.0.2.77"},{"address":"10.201.0.2"}]}"#;
    refused(
        serde_json::from_str(fixed).unwrap(),
        "backend 10.201.0.2 lies in service pool 10.201.0.0/30, where virtual IPs come from: services do not lead to services",
    );
    bench.write("a", outside(r#","hostPort":8472"#, "")).unwrap();
}

/// One address is not one service's whole and another's in part, whoever comes first and whatever the views say.
#[test]
fn address_belongs_to_services_whole_or_by_port() {
    let mut bench = two_addresses();
    let old = bench.view();
    bench.write("a", outside("", r#","externalIps":["198.51.100.7"]"#)).unwrap();
    let error = bench.write("b", spec("198.51.100.7", 80)).unwrap_err().to_string();
    assert!(error.contains("198.51.100.7:80/tcp belongs to service a"), "{error}");
    let started = ServiceWrite::start(&old, name("b"), spec("198.51.100.7", 80), Expected::Any);
    let view = bench.view();
    // The view catches up while it is asked again and again.
    let error = bench.run_with(started, &view, |_, _| false).unwrap_err().to_string();
    assert!(error.contains("198.51.100.7:80/tcp belongs to service a"), "{error}");
    bench.delete("a").unwrap();
    bench.write("b", spec("198.51.100.7", 80)).unwrap();
    let started = ServiceWrite::start(
        &old,
        name("a"),
        outside("", r#","externalIps":["198.51.100.7"]"#),
        Expected::Any,
    );
    let error = bench.run_with(started, &old, |_, _| false).unwrap_err().to_string();
    assert!(error.contains("address 198.51.100.7 belongs to service b"), "{error}");
    claims(&bench);
}

#[test]
fn node_port_is_found_kept_and_given_back() {
    let mut bench = two_addresses();
    let auto = || outside(r#","nodePort":"auto""#, "");
    let given = |bench: &Bench, service: &str| {
        bench.view().services()[&name(service)]
            .record
            .node_ports
            .iter()
            .map(|it| it.node_port)
            .collect::<Vec<_>>()
    };
    bench.write("a", auto()).unwrap();
    let first = given(&bench, "a");
    assert!(kvstore_schema::service::NODE_PORTS.contains(&first[0]));
    // Changed otherwise, and made anew: the same.
    let random = ServiceSpec { algorithm: kvstore_schema::service::Algorithm::Random, ..auto() };
    assert_eq!(bench.write("a", random).unwrap().0, Changed);
    assert_eq!(given(&bench, "a"), first);
    bench.delete("a").unwrap();
    bench.write("a", auto()).unwrap();
    assert_eq!(given(&bench, "a"), first);
    // Another has the place of its name: the next one, also when that is not known yet.
    bench.delete("a").unwrap();
    let old = bench.view();
    bench.write("b", outside(&format!(r#","nodePort":{}"#, first[0]), "")).unwrap();
    let started = ServiceWrite::start(&old, name("a"), auto(), Expected::Any);
    let written = bench.run_with(started, &old, |_, _| false).unwrap();
    assert_eq!(written.record.node_ports[0].node_port, first[0] + 1);
    // Several ports of one service get several, beside those that it names.
    bench.delete("a").unwrap();
    let mut spec = auto();
    spec.ports = ["x", "y", "z"]
        .map(|it| kvstore_schema::service::ServicePort {
            name: Some(it.to_owned()),
            port: u16::from(it.as_bytes()[0]),
            ..auto().ports[0].clone()
        })
        .to_vec();
    bench.write("a", spec.clone()).unwrap();
    let three = given(&bench, "a");
    bench.delete("a").unwrap();
    spec.ports[2].node_port = Some(NodePort::Number(three[0]));
    spec.validate().unwrap();
    bench.write("a", spec).unwrap();
    let mut numbers = given(&bench, "a");
    assert_eq!((numbers[1], numbers[2]), (three[1], three[0]));
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 3);
    claims(&bench);
}

/// The largest change is one transaction that etcd takes.
#[test]
fn service_replaces_all_its_claims_in_one_transaction() {
    let mut bench = two_addresses();
    let many = |net: u8| {
        let addresses: Vec<String> = (1..=48).map(|last| format!(r#""198.51.{net}.{last}""#)).collect();
        outside("", &format!(r#","virtualIp":"192.0.{net}.99","externalIps":[{}]"#, addresses.join(",")))
    };
    bench.write("a", many(100)).unwrap();
    let (_, request) = ServiceWrite::start(&bench.view(), name("a"), many(101), Expected::Any);
    let KvRequest::Txn(txn) = request else { panic!("a transaction") };
    for count in [txn.conditions.len(), txn.then.len(), txn.otherwise.len()] {
        assert!(count <= Txn::MAX_OPS, "{count}");
    }
    assert_eq!(bench.write("a", many(101)).unwrap().0, Changed);
    assert_eq!(claims(&bench).len(), 49);
}

/// A batch of these, and what became of adding each.
fn batch(view: &FleetView, services: &[(&str, ServiceSpec)]) -> (ServiceBatch, Vec<BatchAdded>) {
    let mut batch = ServiceBatch::default();
    let added = services.iter().map(|(service, spec)| batch.add(view, &name(service), spec, Expected::Any));
    let added = added.collect();
    (batch, added)
}

#[test]
fn batch_writes_many_services_in_one_transaction() {
    let mut bench = Bench::fleet("10.0.0.0/16", &["10.201.0.0/24"]);

    let names: Vec<String> = (0..100).map(|index| format!("s{index}")).collect();
    let wanted: Vec<(&str, ServiceSpec)> =
        names.iter().map(|it| (it.as_str(), outside(r#","nodePort":"auto""#, ""))).collect();
    let (mut first, mut written) = (0, Vec::new());
    while first < wanted.len() {
        let view = bench.view();
        let (batch, added) = batch(&view, &wanted[first..]);
        let taken = added.iter().take_while(|it| **it == BatchAdded::Yes).count();
        assert!(taken > 30 || first + taken == wanted.len(), "{taken} of {first}");
        assert!(added[taken..].iter().all(|it| *it == BatchAdded::Full), "{added:?}");
        let (machine, request) = batch.start();
        let KvRequest::Txn(txn) = &request else { panic!("a transaction") };
        assert!(txn.conditions.len() <= Txn::MAX_OPS && txn.then.len() <= Txn::MAX_OPS);
        written.extend(bench.run((machine, request)).unwrap().expect("written"));
        first += taken;
    }
    assert_eq!(written.len(), wanted.len());
    assert_eq!(claims(&bench).len(), 200);
    let view = bench.view();
    for ((service, _), written) in wanted.iter().zip(&written) {
        let entry = &view.services()[&name(service)];
        assert_eq!((written.outcome, &written.record), (Created, entry.record.as_ref()));
        assert_eq!(written.revision, entry.modified);
    }

    // Those that are so already, changed ones and new ones, in one.
    let changed = outside(r#","nodePort":"auto""#, r#","algorithm":"random""#);
    let (mixed, added) =
        batch(&view, &[wanted[0].clone(), ("s1", changed.clone()), ("new", spec("auto", 80))]);
    assert_eq!(added, [BatchAdded::Yes; 3]);
    let outcomes = bench.run(mixed.start()).unwrap().expect("written");
    assert_eq!(outcomes.iter().map(|it| it.outcome).collect::<Vec<_>>(), [Unchanged, Changed, Created]);
    assert_eq!(outcomes[0].revision, view.services()[&name("s0")].modified);
    claims(&bench);
}

#[test]
fn batch_that_does_not_hold_writes_nothing() {
    let mut bench = two_addresses();
    let old = bench.view();
    bench.write("b", outside(r#","nodePort":30080"#, "")).unwrap();
    let before = claims(&bench);
    // What is known not to work, or would write one key twice, is written alone.
    let node_port =
        |number: u16| outside(&format!(r#","nodePort":{number}"#), r#","virtualIp":"192.0.2.50""#);
    let (_, added) =
        batch(&bench.view(), &[("a", node_port(30080)), ("c", node_port(30081)), ("d", node_port(30082))]);
    assert_eq!(added, [BatchAdded::Alone, BatchAdded::Yes, BatchAdded::Alone]);
    let mut empty = ServiceBatch::default();
    let expected = Expected::Revision(Revision(1));
    assert_eq!(empty.add(&bench.view(), &name("b"), &spec("auto", 81), expected), BatchAdded::Alone);
    // What is not known yet.
    for services in [
        vec![("a", spec("192.0.2.51", 80)), ("c", outside(r#","nodePort":30080"#, ""))],
        vec![("a", spec("192.0.2.51", 80)), ("b", spec("auto", 81))],
    ] {
        let (stale, added) = batch(&old, &services);
        assert_eq!(added, [BatchAdded::Yes; 2]);
        assert_eq!(bench.run(stale.start()), Ok(None));
        assert_eq!(claims(&bench), before);
    }
}

#[test]
fn virtual_ips_come_from_all_pools_but_their_edges() {
    let mut bench = Bench::fleet("10.0.0.0/16", &["10.201.0.0/31", "10.201.0.8/32", "10.201.0.16/30"]);
    let mut given: Vec<String> =
        (0..5).map(|index| bench.write(&format!("s{index}"), spec("auto", 80)).unwrap().1).collect();
    given.sort();
    assert_eq!(given, ["10.201.0.0", "10.201.0.1", "10.201.0.17", "10.201.0.18", "10.201.0.8"]);
    let error = bench.write("more", spec("auto", 80)).unwrap_err();
    assert!(matches!(error, ClaimError::ServicePoolExhausted { used: 5, .. }), "{error}");
}

/// A fleet that is made anew gives the same services the same addresses and ports, also by another build.
#[test]
fn service_addresses_and_ports_are_at_the_place_of_the_name() {
    let mut bench = Bench::fleet("10.0.0.0/16", &["10.201.0.0/16"]);
    for (name, address, port) in GOLDEN {
        let (_, given) = bench.write(name, outside(r#","nodePort":"auto""#, "")).unwrap();
        let record = bench.view().services()[&name.parse().unwrap()].record.clone();
        assert_eq!((given.as_str(), record.node_ports[0].node_port), (address, port), "{name}");
    }
}

const GOLDEN: [(&str, &str, u16); 3] =
    [("shop", "10.201.130.57", 30916), ("mart", "10.201.218.188", 32727), ("stall", "10.201.203.25", 31671)];

/// Existing services, each with a node port.
fn with_node_ports(count: usize) -> Bench {
    let mut bench = Bench::fleet("10.0.0.0/16", &["10.201.0.0/16"]);
    let spec = outside(r#","nodePort":"auto""#, "");
    let mut names: Vec<String> = (0..count).map(|index| format!("s{index}")).collect();
    while !names.is_empty() {
        let wanted: Vec<(&str, ServiceSpec)> = names.iter().map(|it| (it.as_str(), spec.clone())).collect();
        let (batch, added) = batch(&bench.view(), &wanted);
        let taken = added.iter().take_while(|it| **it == BatchAdded::Yes).count();
        bench.run(batch.start()).unwrap().expect("written");
        names.drain(..taken);
    }
    bench
}

#[test]
fn batch_is_full_at_the_limits_of_a_transaction() {
    let bench = with_node_ports(130);
    let view = bench.view();
    let full_after = |spec: &ServiceSpec| {
        let names: Vec<String> = (0..130).map(|index| format!("s{index}")).collect();
        let wanted: Vec<(&str, ServiceSpec)> = names.iter().map(|it| (it.as_str(), spec.clone())).collect();
        let (batch, added) = batch(&view, &wanted);
        let KvRequest::Txn(txn) = batch.start().1 else { panic!("a transaction") };
        let taken = added.iter().take_while(|it| **it == BatchAdded::Yes).count();
        assert_eq!(added[taken], BatchAdded::Full);
        let size = |op: &KvOp| match op {
            KvOp::Put { key, value, .. } => key.as_str().len() + value.len(),
            KvOp::Delete(key) | KvOp::Get(key) => key.as_str().len(),
        };
        (taken, txn.conditions.len(), txn.then.len(), txn.then.iter().map(size).sum::<usize>())
    };
    // One condition for each service that is unchanged; two operations where a node port is given back.
    assert_eq!(full_after(&outside(r#","nodePort":"auto""#, "")), (128, 128, 0, 0));
    let (taken, conditions, ops, _) = full_after(&outside("", ""));
    assert_eq!((taken, conditions, ops), (64, 65, 128));

    let backends: Vec<String> = (0..512)
        .map(|index| format!(r#"{{"address":"192.0.{}.{}"}}"#, 100 + index / 256, index % 256))
        .collect();
    let json =
        format!(r#"{{"ports":[{{"port":80,"nodePort":"auto"}}],"backends":[{}]}}"#, backends.join(","));
    let large: ServiceSpec = serde_json::from_str(&json).unwrap();
    let (taken, conditions, _, bytes) = full_after(&large.normalised());
    assert!(conditions < 100 && bytes <= 512 * 1024 && bytes + bytes / taken > 512 * 1024, "{taken} {bytes}");
}

#[test]
fn taken_claim_is_told_with_what_finds_a_free_one() {
    let mut bench = two_addresses();
    let wanted = outside(r#","nodePort":30080,"hostPort":8080"#, r#","virtualIp":"192.0.2.77""#);
    bench.write("a", wanted).unwrap();
    let told = |bench: &mut Bench, spec| bench.write("b", spec).unwrap_err().to_string();
    assert_eq!(
        told(&mut bench, outside(r#","hostPort":8080"#, "")),
        "host port 8080/tcp belongs to service a; use another one"
    );
    assert_eq!(
        told(&mut bench, outside(r#","nodePort":30080"#, "")),
        "node port 30080/tcp belongs to service a; use another one, or nodePort: auto"
    );
    assert_eq!(
        told(&mut bench, spec("192.0.2.77", 80)),
        "address 192.0.2.77 belongs to service a; use another one (as a virtualIp, auto finds one)"
    );
}
