//! Services that are written, changed and deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use datapath_plan::{Frontend, Protocol};
use ipnetwork::IpNetwork;
use kvstore_schema::service::{Algorithm, FixedBackend, ServiceProtocol, ServiceSpec, VirtualIp};
use node_core::{Call, CallErrorKind, Expected, Reply, ServiceOutcome};

use super::{at, delete, expect, fleet, meaning, one, put, selecting, served};
use chaos_sim::{Sim, added, check, name};

#[test]
fn service_reaches_every_kernel_and_follows_its_endpoints() {
    let (mut sim, web) = fleet(60);
    let (outcome, vip) = put(&mut sim, 3, "web", selecting("app=web", 80));
    assert_eq!(outcome, ServiceOutcome::Created);
    sim.settle();
    let frontend = format!("{vip}:80 tcp");
    expect(&sim, [(frontend.clone(), vec![at(web[0]), at(web[1])])]);

    let (third, _) = added(sim.add(3, "d", "app=web"));
    sim.settle();
    expect(&sim, [(frontend.clone(), vec![at(web[0]), at(web[1]), at(third)])]);
    sim.ask(2, Call::EndpointDelete(name("b"))).expect("deleted");
    sim.settle();
    expect(&sim, [(frontend.clone(), vec![at(web[0]), at(third)])]);

    // Without backends the frontend stays, and rejects clients.
    sim.ask(1, Call::EndpointDelete(name("a"))).expect("deleted");
    sim.ask(3, Call::EndpointDelete(name("d"))).expect("deleted");
    sim.settle();
    expect(&sim, [(frontend, vec![])]);
    assert!(delete(&mut sim, 1, "web"));
    sim.settle();
    expect(&sim, []);
    check::converged(&sim);
}

#[test]
fn service_change_keeps_the_ids_of_what_stays() {
    let (mut sim, web) = fleet(61);
    let mut spec = selecting("app=web", 80);
    let (_, vip) = put(&mut sim, 1, "web", spec.clone());
    sim.settle();
    let frontend = |port, protocol| Frontend { address: vip, port, protocol };
    let numbers = |sim: &Sim| {
        let tables = sim.agents[1].kernel.tables();
        let service = tables.frontends[&frontend(80, Protocol::Tcp)].service;
        (service, tables.services[&service].members.clone())
    };
    let before = numbers(&sim);
    spec.algorithm = Algorithm::Random;
    spec.ports[0].name = Some("http".to_owned());
    spec.ports.push(one(Some("dns"), ServiceProtocol::Udp, 53, 5353));
    assert_eq!(put(&mut sim, 2, "web", spec.clone()), (ServiceOutcome::Changed, vip));
    assert_eq!(put(&mut sim, 2, "web", spec), (ServiceOutcome::Unchanged, vip));
    sim.settle();
    assert_eq!(numbers(&sim), before);
    let dns = web.iter().map(|address| format!("{address}:5353 1")).collect();
    expect(
        &sim,
        [(format!("{vip}:80 tcp"), web.iter().copied().map(at).collect()), (format!("{vip}:53 udp"), dns)],
    );

    // Static backends, another address, the same port: the former entries go.
    let fixed = ServiceSpec {
        virtual_ip: VirtualIp::Address([198, 51, 100, 7].into()),
        selector: None,
        backends: vec![FixedBackend { address: [192, 0, 2, 99].into(), port: None, weight: 7 }],
        ..selecting("", 80)
    };
    put(&mut sim, 1, "web", fixed);
    sim.settle();
    expect(&sim, [("198.51.100.7:80 tcp".to_owned(), vec!["192.0.2.99:8080 7".to_owned()])]);
}

/// The host's own packets reach the programs by a route: one for the pool, however many services there are.
#[test]
fn virtual_ip_route_exists_while_there_are_services() {
    let (mut sim, _) = fleet(69);
    let routed = |sim: &Sim| -> Vec<String> {
        let routes = &sim.agents[0].kernel.tables().routes;
        let pod =
            |prefix: &IpNetwork| "10.0.0.0/16".parse::<IpNetwork>().expect("a pool").contains(prefix.ip());
        let ours = routes.iter().filter(|(prefix, _)| !pod(prefix));
        ours.map(|(prefix, route)| {
            assert_eq!(route.next_hop, None);
            prefix.to_string()
        })
        .collect()
    };
    assert_eq!(routed(&sim), Vec::<String>::new());
    let spec = selecting("app=web", 80);
    put(&mut sim, 1, "a", spec.clone());
    put(&mut sim, 1, "b", spec.clone());
    put(&mut sim, 1, "c", ServiceSpec { virtual_ip: VirtualIp::Address([198, 51, 100, 7].into()), ..spec });
    sim.settle();
    assert_eq!(routed(&sim), ["10.201.0.0/16", "198.51.100.7/32"]);
    assert!(delete(&mut sim, 1, "a"));
    assert!(delete(&mut sim, 1, "c"));
    sim.settle();
    assert_eq!(routed(&sim), ["10.201.0.0/16"]);
    assert!(delete(&mut sim, 1, "b"));
    sim.settle();
    assert_eq!(routed(&sim), Vec::<String>::new());
}

#[test]
fn service_that_is_invalid_or_conflicting_is_rejected() {
    let (mut sim, web) = fleet(67);
    let (_, vip) = put(&mut sim, 1, "web", selecting("app=web", 80));
    let check = |sim: &mut Sim, virtual_ip: IpAddr, kind, expected: &str| {
        let spec = ServiceSpec { virtual_ip: VirtualIp::Address(virtual_ip), ..selecting("app=web", 80) };
        let call = Call::ServicePut { name: "b".parse().expect("a name"), spec, expected: Expected::Any };
        let error = sim.ask(2, call).expect_err("refused");
        assert_eq!(error.kind, kind, "{}", error.text);
        assert!(error.text.contains(expected), "{}", error.text);
    };
    check(&mut sim, vip, CallErrorKind::Conflict, "belongs to service web");
    check(&mut sim, web[0], CallErrorKind::Invalid, "where endpoints get theirs");
    check(&mut sim, [192, 0, 2, 3].into(), CallErrorKind::Invalid, "is node n3's");
    check(&mut sim, [127, 0, 0, 1].into(), CallErrorKind::Invalid, "spec.virtualIp: 127.0.0.1");
}

/// From two nodes at once, some of them the same: every call is answered, few transactions are needed, and each
/// service exists once.
#[test]
fn services_written_together_share_transactions() {
    let (mut sim, _) = fleet(70);
    let requests = |sim: &Sim| (1..=2).map(|n| sim.node(n).status().counters.kv_requests).sum::<u64>();
    let before = requests(&sim);
    let write = |sim: &mut Sim, n: usize, index: u16| {
        let name = format!("s{index}").parse().expect("a name");
        sim.call(
            n,
            Call::ServicePut { name, spec: selecting("app=web", 80 + index), expected: Expected::Any },
        )
    };
    let ours: Vec<_> = (0..200).map(|index| write(&mut sim, 1, index)).collect();
    let theirs: Vec<_> = (190..200).map(|index| write(&mut sim, 2, index)).collect();
    sim.settle();
    let asked = requests(&sim) - before;
    assert!(asked < 100, "{asked} requests");
    let mut addresses = BTreeSet::new();
    for (index, call) in ours.iter().chain(&theirs).enumerate() {
        match sim.replies.remove(call) {
            Some(Ok(Reply::ServiceWritten { virtual_ip, .. })) => addresses.insert(virtual_ip),
            other => panic!("{index}: {other:?}"),
        };
    }
    assert_eq!((addresses.len(), served(&sim).len()), (200, 200));

    // The store becomes unreachable while they are on their way: every call is answered.
    let calls: Vec<_> = (200..400).map(|index| write(&mut sim, 1, index)).collect();
    sim.store_away();
    sim.advance(Duration::from_secs(30));
    for call in calls {
        let error = sim.replies.remove(&call).expect("an answer").expect_err("nowhere to write it");
        assert_eq!(error.kind, CallErrorKind::Unavailable);
    }
    sim.store_back();
    sim.advance(Duration::from_secs(30));
    assert_eq!(put(&mut sim, 1, "s200", selecting("app=web", 280)).0, ServiceOutcome::Created);
}

/// Random changes: every kernel has what the selectors say about the existing endpoints.
#[test]
fn services_equal_their_selectors_after_random_changes() {
    const SETS: [&str; 4] = ["app=web", "app=web,tier=1", "app=db", "tier=1"];
    let seed = 68;
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut sim = Sim::new(3, seed);
    sim.settle();
    let mut endpoints: BTreeMap<String, (usize, IpAddr, &str)> = BTreeMap::new();
    let mut services: BTreeMap<&str, (IpAddr, ServiceSpec)> = BTreeMap::new();
    for step in 0..120 {
        match rng.u8(..10) {
            0..5 => {
                let (n, labels) = (rng.usize(1..=3), SETS[rng.usize(..4)]);
                let endpoint = format!("e{step}");
                endpoints.insert(endpoint.clone(), (n, added(sim.add(n, &endpoint, labels)).0, labels));
            }
            5..7 if !endpoints.is_empty() => {
                let endpoint =
                    endpoints.keys().nth(rng.usize(..endpoints.len())).cloned().expect("there is one");
                let (n, ..) = endpoints.remove(&endpoint).expect("there");
                sim.ask(n, Call::EndpointDelete(name(&endpoint))).expect("deleted");
            }
            7..9 => {
                let service = ["a", "b", "c"][rng.usize(..3)];
                let spec = selecting(SETS[rng.usize(..4)], rng.u16(80..83));
                let (_, vip) = put(&mut sim, rng.usize(1..=3), service, spec.clone());
                services.insert(service, (vip, spec));
            }
            _ => {
                let service = ["a", "b", "c"][rng.usize(..3)];
                let existed = delete(&mut sim, rng.usize(1..=3), service);
                assert_eq!(existed, services.remove(service).is_some());
            }
        }
        if rng.u8(..8) == 0 {
            sim.restart(rng.usize(1..=3));
        }
        sim.settle();
        if rng.u8(..4) == 0 {
            sim.advance(Duration::from_secs(11));
            let expected = services.values().map(|(vip, spec)| {
                let selector = spec.selector.as_ref().expect("one");
                let members = endpoints
                    .values()
                    .filter(|(_, _, labels)| selector.matches(&labels.parse().expect("labels")));
                (format!("{vip}:{} tcp", spec.ports[0].port), members.map(|(_, ip, _)| at(*ip)).collect())
            });
            assert_eq!(served(&sim), expected.collect(), "step {step}");
        }
    }
    for agent in &sim.agents {
        let anew = agent.node.as_ref().expect("runs").wanted_anew();
        assert_eq!(meaning(agent.kernel.tables()), meaning(&anew));
    }
}
