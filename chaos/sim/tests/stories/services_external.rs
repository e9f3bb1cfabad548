//! Services for external clients, and backends that are preferred by topology: what each node's kernel has, which
//! differs between nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use datapath_plan::{Frontend, FrontendKind, Protocol, ServiceId, ServiceMode, Tables};
use kvstore_schema::service::{Affinity, AffinityBy, Mode, NodePort, ServiceSpec, Topology, TrafficPolicy};
use node_core::Call;

use crate::services::{delete, put, selecting};
use chaos_sim::{Sim, added, config, name};

/// Three nodes, in zones a, a and b.
fn fleet(seed: u64) -> Sim {
    let configs = (1..=3).zip(["zone=a", "zone=a", "zone=b"]).map(|(n, labels)| {
        let mut config = config(n);
        config.node_labels = labels.parse().expect("labels");
        config
    });
    let mut sim = Sim::with(seed, configs.collect());
    sim.settle();
    sim
}

/// `kind address:port`, with the hosts of the backends that take new flows; the addresses of virtual IPs are left
/// out. Every entry of the kernel's tables is in use.
fn meaning(tables: &Tables) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let used: BTreeSet<ServiceId> = tables.frontends.values().map(|value| value.service).collect();
    assert!(tables.services.keys().eq(&used), "a service port that nothing leads to, or none");
    for backend in tables.backends.values() {
        assert!(used.contains(&backend.service), "a backend of nothing");
    }
    let members = |service: ServiceId| -> BTreeSet<IpAddr> {
        let members = tables.services[&service].members.iter();
        let members = members.map(|id| {
            assert_eq!(tables.backends[id].service, service, "a member of another service");
            tables.backends[id].address
        });
        members.collect()
    };
    let frontends = tables.frontends.iter().map(|(frontend, value)| {
        let Frontend { address, port, .. } = frontend;
        let place = match value.kind {
            FrontendKind::Virtual => format!("virtual {port}"),
            kind => format!("{} {address}:{port}", kind.word()),
        };
        (place, members(value.service))
    });
    frontends.collect()
}

fn expect(sim: &Sim, n: usize, frontends: &[(&str, &[IpAddr])]) {
    let expected =
        frontends.iter().map(|(place, members)| ((*place).to_owned(), members.iter().copied().collect()));
    assert_eq!(meaning(sim.agents[n - 1].kernel.tables()), expected.collect(), "n{n}");
}

/// A service with every kind of frontend.
fn outside(labels: &str, number: u16) -> ServiceSpec {
    let mut spec = selecting(labels, number);
    spec.ports[0].node_port = Some(NodePort::Number(30_000 + number));
    spec.ports[0].host_port = Some(8_000 + number);
    spec.external_ips = vec![[198, 51, 100, 7].into()];
    spec
}

#[test]
fn frontends_lead_to_the_backends_of_their_traffic_policy() {
    let mut sim = fleet(80);
    let web = [(1, "a"), (2, "b"), (2, "c")].map(|(n, name)| added(sim.add(n, name, "app=web")).0);
    let mut spec = outside("app=web", 80);
    spec.affinity = Some(Affinity { by: AffinityBy::ClientIp, timeout_seconds: 60 });
    spec.mode = Mode::Dsr;
    spec.source_ranges = vec!["203.0.113.0/24".parse().expect("a range")];
    put(&mut sim, 3, "web", spec.clone());
    sim.settle();
    let all = |sim: &Sim, host_ports: [&[IpAddr]; 3]| {
        for (n, here) in (1..).zip(host_ports) {
            let mut frontends: Vec<(&str, &[IpAddr])> = vec![
                ("virtual 80", &web),
                ("node-port 0.0.0.0:30080", &web),
                ("external 198.51.100.7:80", &web),
            ];
            if !here.is_empty() {
                frontends.push(("host-port 0.0.0.0:8080", here));
            }
            expect(sim, n, &frontends);
        }
    };
    all(&sim, [&web[..1], &web[1..], &[]]);
    for value in sim.agents[0].kernel.tables().services.values() {
        assert_eq!((value.affinity_seconds, value.mode), (60, ServiceMode::Dsr));
        assert_eq!(value.source_ranges, spec.source_ranges);
    }

    // External clients get backends of the node they came to.
    spec.traffic_policy = TrafficPolicy::Local;
    put(&mut sim, 1, "web", spec.clone());
    sim.settle();
    let local = |sim: &Sim, here: [&[IpAddr]; 3], all: &[IpAddr]| {
        for (n, here) in (1..).zip(here) {
            let mut frontends: Vec<(&str, &[IpAddr])> = vec![
                ("virtual 80", all),
                ("node-port 0.0.0.0:30080", here),
                ("external 198.51.100.7:80", here),
            ];
            if !here.is_empty() {
                frontends.push(("host-port 0.0.0.0:8080", here));
            }
            expect(sim, n, &frontends);
        }
    };
    local(&sim, [&web[..1], &web[1..], &[]], &web);
    let third = added(sim.add(3, "d", "app=web")).0;
    sim.ask(1, Call::EndpointDelete(name("a"))).expect("deleted");
    sim.settle();
    local(&sim, [&[], &web[1..], &[third]], &[web[1], web[2], third]);

    // Back to a virtual IP alone.
    put(&mut sim, 2, "web", selecting("app=web", 80));
    sim.settle();
    for n in 1..=3 {
        expect(&sim, n, &[("virtual 80", &[web[1], web[2], third])]);
    }
    assert!(delete(&mut sim, 2, "web"));
    sim.settle();
    (1..=3).for_each(|n| expect(&sim, n, &[]));
}

#[test]
fn topology_prefers_near_backends_while_there_are_any() {
    let mut sim = fleet(81);
    let web = [(1, "a"), (2, "b"), (3, "c")].map(|(n, name)| added(sim.add(n, name, "app=web")).0);
    let spec = |topology| ServiceSpec { topology, ..selecting("app=web", 80) };
    put(&mut sim, 1, "web", spec(Topology::Zone));
    sim.settle();
    let check = |sim: &Sim, expected: [&[IpAddr]; 3]| {
        for (n, members) in (1..).zip(expected) {
            expect(sim, n, &[("virtual 80", members)]);
            // The other backends stay for their existing flows.
            assert_eq!(sim.agents[n - 1].kernel.tables().backends.len(), web.len(), "n{n}");
        }
    };
    check(&sim, [&web[..2], &web[..2], &web[2..]]);
    put(&mut sim, 1, "web", spec(Topology::Node));
    sim.settle();
    check(&sim, [&web[..1], &web[1..2], &web[2..]]);

    // Another zone: the node's record says so, and every node computes its preference again.
    put(&mut sim, 1, "web", spec(Topology::Zone));
    sim.agents[1].config.node_labels = "zone=b".parse().expect("labels");
    sim.restart(2);
    sim.advance(Duration::from_secs(20));
    check(&sim, [&web[..1], &web[1..], &web[1..]]);

    // No backend of the zone is left: all others are used.
    sim.ask(1, Call::EndpointDelete(name("a"))).expect("deleted");
    sim.settle();
    expect(&sim, 1, &[("virtual 80", &web[1..])]);
}

/// Whichever service is evaluated first.
#[test]
fn frontend_released_by_one_service_can_be_taken_by_another() {
    for (seed, [first, second]) in [(82, ["a", "b"]), (83, ["b", "a"])] {
        let mut sim = fleet(seed);
        added(sim.add(1, "x", "app=a"));
        let other = added(sim.add(2, "y", "app=b")).0;
        put(&mut sim, 1, first, outside("app=a", 80));
        sim.settle();
        // The other node learns of both changes at once.
        sim.agents[2].store_up = false;
        put(&mut sim, 1, first, selecting("app=a", 80));
        put(&mut sim, 1, second, outside("app=b", 80));
        sim.settle();
        sim.agents[2].store_up = true;
        sim.advance(Duration::from_secs(20));
        for agent in &sim.agents {
            let found = meaning(agent.kernel.tables());
            for place in ["node-port 0.0.0.0:30080", "external 198.51.100.7:80"] {
                assert_eq!(found[place], [other].into(), "{first} gave it to {second}");
            }
        }
    }
}

#[test]
fn frontends_for_external_clients_survive_a_restart_unchanged() {
    let mut sim = fleet(84);
    for (n, endpoint) in [(1, "a"), (2, "b"), (3, "c")] {
        added(sim.add(n, endpoint, "app=web"));
    }
    added(sim.add(2, "d", "app=db"));
    let mut spec = ServiceSpec { topology: Topology::Zone, ..outside("app=web", 80) };
    put(&mut sim, 1, "web", spec.clone());
    let local = ServiceSpec {
        traffic_policy: TrafficPolicy::Local,
        external_ips: vec![[198, 51, 100, 8].into()],
        ..outside("app=db", 81)
    };
    put(&mut sim, 1, "db", local);
    sim.advance(Duration::from_secs(20));
    for n in 1..=3 {
        let (steps, before) = (sim.agents[n - 1].kernel.steps(), sim.agents[n - 1].kernel.tables().clone());
        sim.restart(n);
        sim.advance(Duration::from_secs(400));
        assert_eq!(sim.agents[n - 1].kernel.tables(), &before);
        assert_eq!(sim.agents[n - 1].kernel.steps(), steps, "not one step was needed");
    }

    // Changed while an agent was down: the backends of the virtual IP keep their ids.
    let numbers = |sim: &Sim| {
        let tables = sim.agents[0].kernel.tables();
        let virtual_ip = |(it, value): &(&Frontend, &datapath_plan::FrontendValue)| {
            value.kind == FrontendKind::Virtual && it.port == 80 && it.protocol == Protocol::Tcp
        };
        let id = tables.frontends.iter().find(virtual_ip).expect("there").1.service;
        (id, tables.backends.iter().filter(|(_, it)| it.service == id).map(|(id, _)| *id).collect::<Vec<_>>())
    };
    let before = numbers(&sim);
    sim.agents[0].stop();
    spec.traffic_policy = TrafficPolicy::Local;
    put(&mut sim, 2, "web", spec);
    sim.settle();
    sim.restart(1);
    sim.advance(Duration::from_secs(400));
    assert_eq!(numbers(&sim), before);
}

/// Random changes and requests: every kernel has what the node's view makes of them.
#[test]
fn services_equal_each_nodes_view_after_random_changes() {
    const SETS: [&str; 3] = ["app=web", "app=web,tier=1", "tier=1"];
    let seed = 85;
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut sim = fleet(seed);
    let mut endpoints: BTreeMap<String, (usize, IpAddr, &str)> = BTreeMap::new();
    let mut services: BTreeMap<u16, ServiceSpec> = BTreeMap::new();
    for step in 0..100 {
        match rng.u8(..10) {
            0..4 => {
                let (n, labels) = (rng.usize(1..=3), SETS[rng.usize(..3)]);
                let endpoint = format!("e{step}");
                endpoints.insert(endpoint.clone(), (n, added(sim.add(n, &endpoint, labels)).0, labels));
            }
            4..6 if !endpoints.is_empty() => {
                let nth = rng.usize(..endpoints.len());
                let endpoint = endpoints.keys().nth(nth).cloned().expect("there is one");
                let (n, ..) = endpoints.remove(&endpoint).expect("there");
                sim.ask(n, Call::EndpointDelete(name(&endpoint))).expect("deleted");
            }
            6..9 => {
                let number = rng.u16(1..4);
                let mut spec = outside(SETS[rng.usize(..3)], number);
                spec.external_ips = vec![[198, 51, 100, u8::try_from(number).expect("small")].into()];
                spec.traffic_policy = [TrafficPolicy::Fleet, TrafficPolicy::Local][rng.usize(..2)];
                spec.topology = [Topology::Any, Topology::Zone, Topology::Node][rng.usize(..3)];
                if rng.bool() {
                    spec.ports[0].host_port = None;
                }
                put(&mut sim, rng.usize(1..=3), &format!("s{number}"), spec.clone());
                services.insert(number, spec);
            }
            _ => {
                let number = rng.u16(1..4);
                delete(&mut sim, rng.usize(1..=3), &format!("s{number}"));
                services.remove(&number);
            }
        }
        if rng.u8(..8) == 0 {
            sim.restart(rng.usize(1..=3));
        }
        sim.settle();
        if rng.u8(..4) != 0 {
            continue;
        }
        sim.advance(Duration::from_secs(11));
        for (n, zone) in [(1, [1, 2].as_slice()), (2, &[1, 2]), (3, &[3])] {
            let mut expected: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
            for (number, spec) in &services {
                let selector = spec.selector.as_ref().expect("one");
                let on = |nodes: &[usize]| -> BTreeSet<IpAddr> {
                    let all = endpoints.values().filter(|(on, _, labels)| {
                        nodes.contains(on) && selector.matches(&labels.parse().expect("labels"))
                    });
                    all.map(|(_, ip, _)| *ip).collect()
                };
                let (local, near, all) = (on(&[n]), on(zone), on(&[1, 2, 3]));
                let first = |sets: &[&BTreeSet<IpAddr>]| {
                    sets.iter().find(|set| !set.is_empty()).map(|set| (*set).clone()).unwrap_or_default()
                };
                let preferred = match spec.topology {
                    Topology::Any => all.clone(),
                    Topology::Zone => first(&[&near, &all]),
                    Topology::Node => first(&[&local, &near, &all]),
                };
                let outside = match spec.traffic_policy {
                    TrafficPolicy::Fleet => &preferred,
                    TrafficPolicy::Local => &local,
                };
                expected.insert(format!("virtual {number}"), preferred.clone());
                expected.insert(format!("node-port 0.0.0.0:{}", 30_000 + number), outside.clone());
                expected.insert(format!("external 198.51.100.{number}:{number}"), outside.clone());
                if let Some(port) = spec.ports[0].host_port.filter(|_| !local.is_empty()) {
                    expected.insert(format!("host-port 0.0.0.0:{port}"), local.clone());
                }
            }
            assert_eq!(meaning(sim.agents[n - 1].kernel.tables()), expected, "step {step}, n{n}");
        }
    }
    for agent in &sim.agents {
        let anew = agent.node.as_ref().expect("runs").wanted_anew();
        assert_eq!(meaning(agent.kernel.tables()), meaning(&anew));
    }
}
