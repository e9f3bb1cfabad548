//! Backends that are unhealthy, drained or dead: what every kernel makes of them, and what is not affected.

mod death;
mod random;

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

/// Three nodes with a backend each, and gossip in rounds.
fn fleet(seed: u64, spec: ServiceSpec) -> (Sim, [IpAddr; 3]) {
    let mut sim = Sim::new(3, seed);
    sim.rounds = true;
    sim.advance(3 * SECOND);
    let web = [1, 2, 3].map(|n| added(sim.add(n, &format!("w{n}"), "app=web")).0);
    put(&mut sim, 1, spec);
    sim.advance(15 * SECOND);
    (sim, web)
}

/// The state of each backend in a node's kernel, and whether it gets new flows.
fn kernel(sim: &Sim, n: usize) -> BTreeMap<IpAddr, (BackendState, bool)> {
    let tables = sim.agents[n - 1].kernel.tables();
    let members: Vec<_> = tables.services.values().flat_map(|service| &service.members).collect();
    let state = |(id, value): (_, &datapath_plan::BackendValue)| {
        (value.address, (value.state, members.contains(&id)))
    };
    tables.backends.iter().map(state).collect()
}

/// Every running node's kernel has the backends in these states.
fn expect(sim: &Sim, states: &[(IpAddr, BackendState)]) {
    let expected: BTreeMap<_, _> =
        states.iter().map(|(ip, state)| (*ip, (*state, *state == Active))).collect();
    for n in (1..=sim.agents.len()).filter(|n| sim.agents[n - 1].runs()) {
        assert_eq!(kernel(sim, n), expected, "n{n}");
    }
}

/// What a kernel should have for the backends of one port in these states.
fn wanted(states: BTreeMap<IpAddr, BackendState>) -> BTreeMap<IpAddr, (BackendState, bool)> {
    let any = |wanted| states.values().any(|state| *state == wanted);
    let all_unhealthy = !any(Active) && any(Unhealthy);
    let gets = |state| if all_unhealthy && state == Unhealthy { Active } else { state };
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
fn health_check_keeps_new_flows_from_an_unhealthy_backend() {
    let (mut sim, [a, b, c]) = fleet(80, checked(web()));
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
    sim.sick.insert(b);
    sim.advance(1_500 * SECOND / 1_000);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
    // Three check results, and a round of gossip.
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
fn health_check_of_a_new_backend_counts_the_first_failure() {
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
fn health_panic_mode_uses_all_backends_and_reports_it() {
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
    // A drained backend stays out all the same.
    sim.ask(1, Call::EndpointDrain(name("w1"))).expect("drained");
    sim.advance(2 * SECOND);
    expect(&sim, &[(a, Terminating), (b, Active), (c, Active)]);
    sim.sick.remove(&c);
    sim.advance(5 * SECOND);
    expect(&sim, &[(a, Terminating), (b, Unhealthy), (c, Active)]);
    assert!(!warns(&sim, 1, "is well"));
}

#[test]
fn health_falls_back_from_an_unhealthy_near_backend() {
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
fn health_of_an_external_backend_follows_the_majority_of_three_checkers() {
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
    // Checkers die one after the other: others take over, and the backends' states do not change.
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
fn drain_keeps_new_flows_from_an_endpoint() {
    let (mut sim, [a, b, c]) = fleet(89, web());
    let drain = |sim: &mut Sim| sim.ask(2, Call::EndpointDrain(name("w2")));
    // The store is unreachable: gossip spreads the state.
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
    let record = sim.store_view().endpoint_at(b).map(|(_, entry)| entry.record.terminating);
    assert_eq!(record, Some(true));
    check::converged(&sim);
    sim.ask(2, Call::EndpointDelete(name("w2"))).expect("deleted");
    sim.advance(3 * SECOND);
    expect(&sim, &[(a, Active), (c, Active)]);
    let nobody = drain(&mut sim).expect_err("it is gone");
    assert_eq!(nobody.kind, CallErrorKind::NotFound);
}
