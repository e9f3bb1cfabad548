//! Stories of services: from what is written to what every kernel has, and what a restart or a silent store leaves of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use datapath_plan::{Frontend, Protocol, ServiceId, Tables};
use ipnetwork::IpNetwork;
use kvstore_schema::service::{
    Algorithm, FixedBackend, ServicePort, ServiceProtocol, ServiceSpec, VirtualIp,
};
use node_core::{Call, CallErrorKind, Expected, Reply, ServiceOutcome};

use chaos_sim::{Sim, added, check, name};

/// A service of one TCP port, whose backends listen on 8080.
pub fn selecting(labels: &str, port: u16) -> ServiceSpec {
    ServiceSpec {
        ports: vec![one(None, ServiceProtocol::Tcp, port, 8080)],
        selector: Some(identity::Selector {
            match_labels: labels.parse().expect("labels"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn one(name: Option<&str>, protocol: ServiceProtocol, port: u16, target: u16) -> ServicePort {
    ServicePort {
        name: name.map(str::to_owned),
        protocol,
        port,
        target_port: Some(target),
        node_port: None,
        host_port: None,
    }
}

pub fn put(sim: &mut Sim, n: usize, service: &str, spec: ServiceSpec) -> (ServiceOutcome, IpAddr) {
    let name = service.parse().expect("a name");
    match sim.ask(n, Call::ServicePut { name, spec, expected: Expected::Any }) {
        Ok(Reply::ServiceWritten { outcome, virtual_ip, .. }) => (outcome, virtual_ip),
        other => panic!("{other:?}"),
    }
}

pub fn delete(sim: &mut Sim, n: usize, service: &str) -> bool {
    let name = service.parse().expect("a name");
    match sim.ask(n, Call::ServiceDelete { name, expected: Expected::Any }) {
        Ok(Reply::ServiceDeleted { existed }) => existed,
        other => panic!("{other:?}"),
    }
}

/// What tables say of services, without numbers: each frontend with its backends and their weights.
fn meaning(tables: &Tables) -> BTreeMap<String, BTreeSet<String>> {
    let members = |service: ServiceId| {
        let members = tables.services[&service].members.iter().map(|id| {
            let backend = &tables.backends[id];
            assert_eq!(backend.service, service, "a member of another service");
            format!("{}:{} {}", backend.address, backend.port, backend.weight)
        });
        members.collect()
    };
    let frontends = tables.frontends.iter().map(|(frontend, value)| {
        (
            format!("{}:{} {}", frontend.address, frontend.port, frontend.protocol.word()),
            members(value.service),
        )
    });
    let meaning: BTreeMap<String, BTreeSet<String>> = frontends.collect();
    let used: usize = tables.services.values().map(|service| service.members.len()).sum();
    assert_eq!(
        (tables.services.len(), tables.backends.len()),
        (meaning.len(), used),
        "something is left over"
    );
    meaning
}

/// What every kernel says; they must agree.
fn served(sim: &Sim) -> BTreeMap<String, BTreeSet<String>> {
    let all: Vec<_> = sim.agents.iter().map(|agent| meaning(agent.kernel.tables())).collect();
    for (n, other) in all.iter().enumerate() {
        assert_eq!(*other, all[0], "n{} and n1 differ", n + 1);
    }
    all[0].clone()
}

fn expect<const N: usize>(sim: &Sim, frontends: [(String, Vec<String>); N]) {
    let frontends =
        frontends.into_iter().map(|(frontend, members)| (frontend, members.into_iter().collect()));
    assert_eq!(served(sim), frontends.collect());
}

fn fleet(seed: u64) -> (Sim, Vec<IpAddr>) {
    let mut sim = Sim::new(3, seed);
    sim.settle();
    let web = [(1, "a"), (2, "b")].map(|(n, name)| added(sim.add(n, name, "app=web")).0);
    added(sim.add(3, "c", "app=db"));
    (sim, web.to_vec())
}

fn at(address: IpAddr) -> String {
    format!("{address}:8080 1")
}

#[test]
fn a_service_reaches_every_kernel_and_follows_its_endpoints() {
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

    // Nobody is left: whoever comes is told so, by the frontend that stays.
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
fn a_service_that_changes_keeps_the_numbers_of_what_stays() {
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

    // Fixed backends, another address, the same port: what was there goes.
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

/// The node's own packets come to the programs by a route: one for a pool, however many services are in it.
#[test]
fn virtual_ips_are_routed_while_there_are_services() {
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
fn a_restart_changes_nothing_of_services() {
    let (mut sim, _) = fleet(62);
    for (service, port) in [("a", 80), ("b", 81), ("c", 82)] {
        put(&mut sim, 1, service, selecting("app=web", port));
    }
    put(&mut sim, 1, "d", selecting("app=db", 83));
    assert!(delete(&mut sim, 1, "b"));
    sim.advance(Duration::from_secs(20));
    for n in 1..=3 {
        let (steps, before) = (sim.agents[n - 1].kernel.steps(), sim.agents[n - 1].kernel.tables().clone());
        sim.restart(n);
        // Beyond the first audit that may remove something.
        sim.advance(Duration::from_secs(400));
        assert_eq!(sim.agents[n - 1].kernel.tables(), &before);
        assert_eq!(sim.agents[n - 1].kernel.steps(), steps, "not one step was needed");
    }
}

#[test]
fn a_reboot_without_the_store_serves_services_from_the_snapshot() {
    let (mut sim, web) = fleet(63);
    let (_, vip) = put(&mut sim, 1, "web", selecting("app=web", 80));
    sim.advance(Duration::from_secs(10));
    sim.store_away();
    sim.settle();
    sim.reboot(3);
    sim.settle();
    expect(&sim, [(format!("{vip}:80 tcp"), vec![at(web[0]), at(web[1])])]);
    sim.store_back();
    sim.advance(Duration::from_secs(60));
    expect(&sim, [(format!("{vip}:80 tcp"), vec![at(web[0]), at(web[1])])]);
}

#[test]
fn nothing_of_services_goes_before_the_store_has_been_listed() {
    let (mut sim, _) = fleet(64);
    put(&mut sim, 1, "web", selecting("app=web", 80));
    put(&mut sim, 1, "db", selecting("app=db", 5432));
    sim.advance(Duration::from_secs(20));
    let before = served(&sim);
    // Nothing is known of the fleet, and nobody tells.
    sim.store_away();
    sim.gossip = false;
    sim.settle();
    sim.agents[0].disk = None;
    sim.restart(1);
    sim.advance(Duration::from_secs(400));
    assert_eq!(meaning(sim.agents[0].kernel.tables()), before);
    // What went meanwhile goes when it is known.
    sim.gossip = true;
    sim.store_back();
    sim.settle();
    assert!(delete(&mut sim, 2, "db"));
    sim.advance(Duration::from_secs(400));
    assert_eq!(served(&sim).len(), 1);
    assert_eq!(served(&sim).values().next(), before.values().find(|members| members.len() == 2));
}

/// A peer cannot reach the store: gossip alone tells of its endpoint, and after a restart only after a while.
#[test]
fn a_backend_that_only_gossip_tells_of_outlives_a_restart() {
    let (mut sim, web) = fleet(65);
    let (_, vip) = put(&mut sim, 1, "web", selecting("app=web", 80));
    sim.settle();
    sim.agents[1].store_up = false;
    sim.settle();
    let (told, _) = added(sim.add(2, "d", "app=web"));
    sim.settle();
    let all = || [(format!("{vip}:80 tcp"), vec![at(web[0]), at(web[1]), at(told)])];
    expect(&sim, all());
    let before = sim.agents[0].kernel.tables().clone();
    let (_, changes) = sim.agents[0].kernel.steps();
    sim.gossip = false;
    sim.restart(1);
    sim.settle();
    sim.gossip = true;
    sim.advance(Duration::from_secs(20));
    let kernel = &sim.agents[0].kernel;
    assert_eq!((kernel.tables(), kernel.steps().1), (&before, changes), "it was away for a while");
    expect(&sim, all());
}

#[test]
fn without_the_store_services_go_on_and_none_is_written() {
    let (mut sim, web) = fleet(66);
    let (_, vip) = put(&mut sim, 1, "web", selecting("app=web", 80));
    sim.settle();
    sim.store_away();
    sim.settle();
    let call = Call::ServicePut {
        name: "late".parse().expect("a name"),
        spec: selecting("app=web", 81),
        expected: Expected::Any,
    };
    let error = sim.ask(1, call).expect_err("nowhere to write it");
    assert_eq!(error.kind, CallErrorKind::Unavailable);
    assert!(error.text.contains("services are written in etcd, which cannot be done now"), "{}", error.text);
    // Endpoints still come, by gossip.
    let (told, _) = added(sim.add(2, "d", "app=web"));
    sim.settle();
    expect(&sim, [(format!("{vip}:80 tcp"), vec![at(web[0]), at(web[1]), at(told)])]);
}

#[test]
fn what_makes_no_sense_or_belongs_to_others_is_refused() {
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

/// From two nodes at once, some of them the same: everybody is answered, few transactions are needed, and each service is
/// there once.
#[test]
fn services_that_come_together_are_written_together() {
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

    // The store goes while they are on their way: everybody is told.
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

/// Whatever comes and goes: every kernel has what selectors say of the endpoints that there are.
#[test]
fn services_are_what_their_selectors_say_whatever_comes_and_goes() {
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
