//! The death of agents and nodes.

use std::time::Duration;

use datapath_plan::BackendState::{Active, Unhealthy};

use super::{SECOND, checked, expect, fleet, kernel, reasons, web};
use chaos_sim::{Sim, added};

#[test]
fn node_death_removes_its_backends_but_agent_death_does_not() {
    // Without a health check: node death is always noticed.
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
    // A restarted node keeps the state, with or without gossip.
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
fn node_death_after_its_agent_is_noticed() {
    let (mut sim, [a, b, c]) = fleet(84, web());
    sim.halt(2);
    sim.advance(60 * SECOND);
    sim.power_off(2);
    sim.advance(5 * SECOND);
    expect(&sim, &[(a, Active), (b, Unhealthy), (c, Active)]);
}

#[test]
fn node_death_before_an_agent_started_is_noticed() {
    let (mut sim, [_, b, c]) = fleet(85, web());
    sim.power_off(2);
    sim.restart(3);
    sim.reboot(1);
    let again = added(sim.add(1, "w1", "app=web")).0;
    sim.advance(Duration::from_secs(5));
    assert_eq!(kernel(&sim, 1)[&b], (Active, true), "it knows nothing of n2");
    sim.advance(10 * SECOND);
    expect(&sim, &[(again, Active), (b, Unhealthy), (c, Active)]);
}

#[test]
fn node_without_live_peers_reports_no_death() {
    let (mut sim, [a, b, c]) = fleet(86, web());
    (2..=3).for_each(|n| sim.power_off(n));
    sim.restart(1);
    sim.gossip = false;
    sim.advance(60 * SECOND);
    expect(&sim, &[(a, Active), (b, Active), (c, Active)]);
}

#[test]
fn health_states_survive_a_restart() {
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
