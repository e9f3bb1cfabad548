//! Stories of backends: who is found unwell, drained or dead, what every kernel makes of it, and who is left alone.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use datapath_plan::BackendState::{self, Active, Terminating, Unhealthy};
use kvstore_schema::service::{FixedBackend, HealthCheck, Probe, ServicePort, ServiceSpec, Span};
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
    sim.advance(2 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active), (late, Unhealthy)]);
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
        assert!(warns(&sim, n, "service web, port 80/tcp: none of its 3 backends is well, so all are used"));
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
