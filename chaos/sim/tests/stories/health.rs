//! Stories of backends: who is found unwell, drained or dead, what every kernel makes of it, and who is left alone.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use datapath_plan::BackendState::{self, Active, Terminating, Unhealthy};
use kvstore_schema::service::{FixedBackend, HealthCheck, Probe, ServicePort, ServiceSpec, Span, Topology};
use node_core::{Call, CallErrorKind, EndpointSpec, Expected, Reply};

use chaos_sim::{Sim, added, check, name, spec};

const SECOND: Duration = Duration::from_secs(1);

fn web() -> ServiceSpec {
    let json = r#"{"ports":[{"port":80,"targetPort":8080}],"selector":{"matchLabels":{"app":"web"}}}"#;
    serde_json::from_str(json).expect("a spec")
}

fn checked(spec: ServiceSpec) -> ServiceSpec {
    let check = HealthCheck { interval: Span::ms(1_000), ..HealthCheck::new(Probe::Tcp) };
    ServiceSpec { health_check: Some(Box::new(check)), ..spec }
}

fn put(sim: &mut Sim, n: usize, spec: ServiceSpec) {
    let name = "web".parse().expect("a name");
    let put = sim.ask(n, Call::ServicePut { name, spec, expected: Expected::Any });
    assert!(matches!(put, Ok(Reply::ServiceWritten { .. })), "{put:?}");
}

/// Three nodes with a backend each, and gossip that goes in rounds.
fn fleet(seed: u64, spec: ServiceSpec) -> (Sim, [IpAddr; 3]) {
    let mut sim = Sim::new(3, seed);
    sim.rounds = true;
    sim.advance(3 * SECOND);
    let web = [1, 2, 3].map(|n| added(sim.add(n, &format!("w{n}"), "app=web")).0);
    put(&mut sim, 1, spec);
    sim.advance(15 * SECOND);
    (sim, web)
}

/// What the kernel of a node has of each backend, and whether it gets new flows.
fn kernel(sim: &Sim, n: usize) -> BTreeMap<IpAddr, (BackendState, bool)> {
    let tables = sim.agents[n - 1].kernel.tables();
    let members: Vec<_> = tables.services.values().flat_map(|service| &service.members).collect();
    let state = |(id, value): (_, &datapath_plan::BackendValue)| {
        (value.address, (value.state, members.contains(&id)))
    };
    tables.backends.iter().map(state).collect()
}

/// Every running node's kernel has the backends so.
fn expect(sim: &Sim, states: &[(IpAddr, BackendState)]) {
    let expected: BTreeMap<_, _> =
        states.iter().map(|(ip, state)| (*ip, (*state, *state == Active))).collect();
    for n in (1..=sim.agents.len()).filter(|n| sim.agents[n - 1].runs()) {
        assert_eq!(kernel(sim, n), expected, "n{n}");
    }
}

/// What a kernel should have of backends of one port that are so by themselves.
fn wanted(states: BTreeMap<IpAddr, BackendState>) -> BTreeMap<IpAddr, (BackendState, bool)> {
    let any = |wanted| states.values().any(|state| *state == wanted);
    let desperate = !any(Active) && any(Unhealthy);
    let gets = |state| if desperate && state == Unhealthy { Active } else { state };
    states.into_iter().map(|(ip, state)| (ip, (gets(state), gets(state) == Active))).collect()
}

fn reasons(sim: &Sim, n: usize) -> BTreeMap<IpAddr, Option<String>> {
    let service = sim.node(n).service(&"web".parse().expect("a name")).expect("it is there");
    let backends = service.ports.into_iter().flat_map(|port| port.backends);
    backends.map(|backend| (backend.address, backend.reason)).collect()
}

fn warns(sim: &Sim, n: usize, text: &str) -> bool {
    sim.node(n).status().warnings.iter().any(|warning| warning.contains(text))
}

#[test]
fn a_sick_backend_gets_no_new_flows_until_it_is_well_again() {
    let (mut sim, [a, b, c]) = fleet(80, checked(web()));
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
    sim.sick.insert(b);
    sim.advance(1_500 * SECOND / 1_000);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
    // Three answers, a round of gossip.
    sim.advance(4 * SECOND);
    expect(&sim, &[(a, Active), (b, Unhealthy), (c, Active)]);
    assert_eq!(reasons(&sim, 3)[&b].as_deref(), Some("connection refused"));
    assert_eq!(reasons(&sim, 3)[&a], None);
    sim.sick.clear();
    sim.advance(5 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
    check::converged(&sim);
}

#[test]
fn a_backend_that_was_never_well_is_unwell_with_its_first_answer() {
    let (mut sim, [a, b, c]) = fleet(81, checked(web()));
    let IpAddr::V4(near) = b else { panic!("{b} is of IPv4") };
    let late = IpAddr::from((near.to_bits() + 50).to_be_bytes());
    sim.sick.insert(late);
    let wanted = EndpointSpec { address: Some(late), ..spec("late", "app=web") };
    assert_eq!(added(sim.ask(2, Call::EndpointAdd(wanted))).0, late);
    let states = [(a, Active), (b, Active), (c, Active), (late, Unhealthy)];
    for _ in 0..200 {
        for n in 1..=3 {
            let state = kernel(&sim, n).get(&late).copied();
            assert!(state.is_none() || state == Some((Unhealthy, false)), "n{n} has {state:?}");
        }
        sim.advance(10 * SECOND / 1_000);
    }
    expect(&sim, &states);
    sim.sick.clear();
    sim.advance(4 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active), (late, Active)]);
}

#[test]
fn where_none_is_well_all_are_used_and_that_is_said() {
    let (mut sim, [a, b, c]) = fleet(82, checked(web()));
    sim.sick.extend([a, b, c]);
    sim.advance(6 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
    for n in 1..=3 {
        assert!(warns(
            &sim,
            n,
            "service web, port 80/tcp: all of its 3 backends are unhealthy, so all are used"
        ));
    }
    // A drained one stays out all the same.
    sim.ask(1, Call::EndpointDrain(name("w1"))).expect("drained");
    sim.advance(2 * SECOND);
    expect(&sim, &[(a, Terminating), (b, Active), (c, Active)]);
    sim.sick.remove(&c);
    sim.advance(5 * SECOND);
    expect(&sim, &[(a, Terminating), (b, Unhealthy), (c, Active)]);
    assert!(!warns(&sim, 1, "is well"));
}

#[test]
fn where_the_near_one_is_sick_those_further_away_are_used() {
    let spec = ServiceSpec { topology: Topology::Node, ..checked(web()) };
    let (mut sim, [a, b, c]) = fleet(90, spec);
    let used = |sim: &Sim, n| -> Vec<IpAddr> {
        kernel(sim, n).into_iter().filter(|(_, (_, used))| *used).map(|(ip, _)| ip).collect()
    };
    assert_eq!([1, 2, 3].map(|n| used(&sim, n)), [vec![a], vec![b], vec![c]]);
    sim.sick.insert(a);
    sim.advance(6 * SECOND);
    let mut others = vec![b, c];
    others.sort();
    assert_eq!([1, 2, 3].map(|n| used(&sim, n)), [others, vec![b], vec![c]]);
    sim.sick.clear();
    sim.advance(6 * SECOND);
    assert_eq!(used(&sim, 1), [a]);
}

#[test]
fn a_dead_agent_keeps_its_backends_and_a_dead_node_does_not() {
    // Without any check: a node's death is everybody's affair.
    let (mut sim, [a, b, c]) = fleet(83, web());
    sim.halt(2);
    sim.advance(60 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
    sim.restart(2);
    sim.advance(15 * SECOND);
    sim.power_off(2);
    sim.advance(5 * SECOND);
    expect(&sim, &[(a, Active), (b, Unhealthy), (c, Active)]);
    assert_eq!(reasons(&sim, 1)[&b].as_deref(), Some("node n2 does not answer"));
    // Who starts anew does not forget it, with or without what gossip says.
    sim.restart(1);
    sim.settle();
    expect(&sim, &[(a, Active), (b, Unhealthy), (c, Active)]);
    sim.advance(30 * SECOND);
    expect(&sim, &[(a, Active), (b, Unhealthy), (c, Active)]);
    sim.restart(2);
    sim.advance(5 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
}

#[test]
fn a_node_that_dies_after_its_agent_is_missed_too() {
    let (mut sim, [a, b, c]) = fleet(84, web());
    sim.halt(2);
    sim.advance(60 * SECOND);
    sim.power_off(2);
    sim.advance(5 * SECOND);
    expect(&sim, &[(a, Active), (b, Unhealthy), (c, Active)]);
}

#[test]
fn a_node_that_died_before_an_agent_heard_of_it_is_missed_by_that_too() {
    let (mut sim, [_, b, c]) = fleet(85, web());
    sim.power_off(2);
    sim.restart(3);
    sim.reboot(1);
    let again = added(sim.add(1, "w1", "app=web")).0;
    sim.advance(Duration::from_secs(5));
    assert_eq!(kernel(&sim, 1)[&b], (Active, true), "nobody has told it anything of n2");
    sim.advance(10 * SECOND);
    expect(&sim, &[(again, Active), (b, Unhealthy), (c, Active)]);
}

#[test]
fn who_hears_nobody_calls_nobody_dead() {
    let (mut sim, [a, b, c]) = fleet(86, web());
    (2..=3).for_each(|n| sim.power_off(n));
    sim.restart(1);
    sim.gossip = false;
    sim.advance(60 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
}

#[test]
fn a_restart_moves_no_backend() {
    let (mut sim, [a, b, c]) = fleet(87, checked(web()));
    sim.sick.insert(b);
    sim.advance(6 * SECOND);
    let states = [(a, Active), (b, Unhealthy), (c, Active)];
    expect(&sim, &states);
    for n in 1..=3 {
        let steps = |sim: &Sim| sim.agents.iter().map(|agent| agent.kernel.steps().1).sum::<u64>();
        let before = steps(&sim);
        sim.restart(n);
        for _ in 0..200 {
            sim.advance(Duration::from_millis(100));
            expect(&sim, &states);
        }
        assert_eq!(steps(&sim), before, "n{n} has changed something in a kernel");
    }
}

#[test]
fn a_backend_outside_the_fleet_is_judged_by_the_majority_of_three_checkers() {
    let outside: IpAddr = [198, 51, 100, 7].into();
    let other: IpAddr = [198, 51, 100, 8].into();
    let fixed = |address| FixedBackend { address, port: None, weight: 1 };
    let port = ServicePort { target_port: Some(8080), ..web().ports[0].clone() };
    let spec = ServiceSpec {
        ports: vec![port],
        backends: vec![fixed(outside), fixed(other)],
        ..ServiceSpec::default()
    };
    let mut sim = Sim::new(5, 88);
    sim.rounds = true;
    sim.advance(15 * SECOND);
    put(&mut sim, 1, checked(spec));
    sim.advance(5 * SECOND);
    expect(&sim, &[(outside, Active), (other, Active)]);
    sim.sick.insert(outside);
    sim.advance(6 * SECOND);
    expect(&sim, &[(outside, Unhealthy), (other, Active)]);
    let reason = reasons(&sim, 1)[&outside].clone().expect("a reason");
    assert!(
        reason.starts_with("connection refused (") && reason.ends_with(" and others, 3 of 3)"),
        "{reason}"
    );
    // Checkers die, one after the other: others take over, and nobody else notices.
    for n in [5, 4, 3] {
        sim.power_off(n);
        for _ in 0..200 {
            sim.advance(Duration::from_millis(100));
            expect(&sim, &[(outside, Unhealthy), (other, Active)]);
        }
    }
    sim.sick.clear();
    sim.advance(6 * SECOND);
    expect(&sim, &[(outside, Active), (other, Active)]);
}

#[test]
fn a_drained_endpoint_gets_no_new_flows_until_it_is_gone() {
    let (mut sim, [a, b, c]) = fleet(89, web());
    let drain = |sim: &mut Sim| sim.ask(2, Call::EndpointDrain(name("w2")));
    // The store is away: gossip tells it.
    sim.store_away();
    assert_eq!(drain(&mut sim), Ok(Reply::EndpointDrained { already: false }));
    assert_eq!(drain(&mut sim), Ok(Reply::EndpointDrained { already: true }));
    sim.advance(3 * SECOND);
    let states = [(a, Active), (b, Terminating), (c, Active)];
    expect(&sim, &states);
    for n in 1..=3 {
        sim.restart(n);
        sim.advance(15 * SECOND);
        expect(&sim, &states);
        assert!(sim.node(2).endpoint(&name("w2")).is_some_and(|endpoint| endpoint.terminating));
    }
    sim.store_back();
    sim.advance(40 * SECOND);
    expect(&sim, &states);
    let record = check::view(&sim).endpoint_at(b).map(|(_, entry)| entry.record.terminating);
    assert_eq!(record, Some(true));
    check::converged(&sim);
    sim.ask(2, Call::EndpointDelete(name("w2"))).expect("deleted");
    sim.advance(3 * SECOND);
    expect(&sim, &[(a, Active), (c, Active)]);
    let nobody = drain(&mut sim).expect_err("it is gone");
    assert_eq!(nobody.kind, CallErrorKind::NotFound);
}

/// What random histories do to backends. At the end everything can be reached that has power.
struct Trouble {
    sim: Sim,
    rng: fastrand::Rng,
    outside: Vec<IpAddr>,
}

impl Trouble {
    const NODES: usize = 4;

    fn new(seed: u64) -> Self {
        let mut sim = Sim::new(Self::NODES as u8, seed);
        sim.rounds = true;
        sim.advance(15 * SECOND);
        put(&mut sim, 1, checked(web()));
        let outside: Vec<IpAddr> = (1..=3).map(|last| [198, 51, 100, last].into()).collect();
        let backends =
            outside.iter().map(|address| FixedBackend { address: *address, port: None, weight: 1 }).collect();
        let fixed = ServiceSpec { selector: None, backends, ..checked(web()) };
        let put =
            Call::ServicePut { name: "fixed".parse().expect("a name"), spec: fixed, expected: Expected::Any };
        sim.ask(2, put).expect("written");
        Self { sim, rng: fastrand::Rng::with_seed(seed), outside }
    }

    fn act(&mut self) {
        let Self { sim, rng, outside } = self;
        let n = rng.usize(1..=Self::NODES);
        let runs = sim.agents[n - 1].node.is_some();
        let endpoint = name(&format!("e{}", rng.u8(0..3)));
        let mut known: Vec<IpAddr> = outside.clone();
        let kernels = sim.agents.iter().flat_map(|agent| agent.kernel.tables().endpoints.values());
        known.extend(kernels.map(|endpoint| endpoint.address));
        match rng.u8(0..20) {
            0..4 if runs => drop(sim.call(n, Call::EndpointAdd(spec(endpoint.as_str(), "app=web")))),
            4 if runs => drop(sim.call(n, Call::EndpointDelete(endpoint))),
            5 | 6 if runs => drop(sim.call(n, Call::EndpointDrain(endpoint))),
            7..11 => {
                let one = *rng.choice(&known).expect("those outside");
                if !sim.sick.remove(&one) {
                    sim.sick.insert(one);
                }
            }
            11 => sim.halt(n),
            12 | 13 => sim.restart(n),
            // Whoever hears nobody misses nobody: one at a time.
            14 if sim.dark.is_empty() => sim.power_off(n),
            15 => sim.store_away(),
            16 => sim.store_back(),
            17 => {
                let other = rng.usize(0..Self::NODES);
                sim.links.link(n - 1, other).up = false;
            }
            18 => sim.links.heal(),
            _ => {}
        }
        let by = Duration::from_millis(rng.u64(0..4_000));
        self.sim.advance(by);
    }

    fn end(&mut self) {
        let Self { sim, .. } = self;
        sim.links.heal();
        sim.store_back();
        for n in 1..=Self::NODES {
            if sim.agents[n - 1].node.is_none() && !sim.dark.contains(&n) {
                sim.restart(n);
            }
        }
        sim.advance(60 * SECOND);
    }

    /// What the fleet's services should be in every kernel.
    fn expected(&self) -> BTreeMap<IpAddr, (BackendState, bool)> {
        let sim = &self.sim;
        let dark =
            |node: &identity::NodeName| sim.dark.iter().any(|n| sim.agents[n - 1].config.node == *node);
        let sick = |ip: &IpAddr| if sim.sick.contains(ip) { Unhealthy } else { Active };
        let view = check::view(sim);
        let endpoints = view.endpoints().iter().flat_map(|(node, records)| {
            records.iter().map(move |(ip, entry)| match entry.record.terminating {
                true => (*ip, Terminating),
                false if dark(node) => (*ip, Unhealthy),
                false => (*ip, sick(ip)),
            })
        });
        let mut expected = wanted(endpoints.collect());
        expected.extend(wanted(self.outside.iter().map(|ip| (*ip, sick(ip))).collect()));
        expected
    }
}

#[test]
fn whatever_happens_every_kernel_ends_with_backends_as_they_are() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut trouble = Trouble::new(seed);
        for _ in 0..60 {
            trouble.act();
        }
        trouble.end();
        let expected = trouble.expected();
        for n in (1..=Trouble::NODES).filter(|n| !trouble.sim.dark.contains(n)) {
            assert_eq!(kernel(&trouble.sim, n), expected, "n{n}");
        }
    }
}
