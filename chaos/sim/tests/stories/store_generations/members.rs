//! Members that know little of the fleet when its store is lost.

use std::time::Duration;

use super::{WHOLE, content, delete_all, empty, fleet, is_whole, kernels, nothing_leaves};
use chaos_sim::{Sim, added, check, config};

#[test]
fn node_joining_an_empty_store_waits_for_members_that_know_the_fleet() {
    let mut sim = fleet(94);
    let (before, fleet_id) = (kernels(&sim), sim.node(1).status().fleet_id);
    sim.agents.iter_mut().for_each(|agent| agent.store_up = false);
    sim.settle();
    empty(&mut sim, 2);
    // Gossip says that there is a fleet.
    sim.join(config(4));
    sim.agent(4).store_up = false;
    sim.settle();
    sim.advance(Duration::from_secs(1));
    sim.agent(4).store_up = true;
    nothing_leaves(&mut sim, &before, Duration::from_secs(60));
    assert_eq!(
        check::view(&sim).fleet().map(|fleet| fleet.record.fleet_id.clone()),
        None,
        "not its own fleet"
    );
    sim.agents.iter_mut().for_each(|agent| agent.store_up = true);
    nothing_leaves(&mut sim, &before, WHOLE);
    assert_eq!(sim.node(4).status().fleet_id, fleet_id);
    added(sim.add(4, "web", "app=web"));
    check::converged(&sim);
}

#[test]
fn node_with_an_old_snapshot_removes_nothing_before_the_others_restored() {
    for seed in 135..140 {
        let mut sim = fleet(seed);
        let before = kernels(&sim);
        let stored = content(&check::view(&sim));
        // The machine dies with a snapshot from before the others joined; its kernel has outlived it.
        sim.agents.iter_mut().for_each(|agent| agent.store_up = false);
        sim.gossip = false;
        sim.settle();
        sim.halt(1);
        let mut young = Sim::with(seed, vec![config(1)]);
        young.settle();
        young.advance(Duration::from_secs(10));
        let mut disk = young.agents[0].disk.clone().expect("a snapshot");
        disk.fleet_id = sim.node(2).status().fleet_id.clone().expect("known");
        sim.agent(1).disk = Some(disk);
        empty(&mut sim, 2);
        sim.restart(1);
        sim.agent(1).store_up = true;
        nothing_leaves(&mut sim, &before, Duration::from_secs(5));
        sim.gossip = true;
        sim.agents.iter_mut().for_each(|agent| agent.store_up = true);
        nothing_leaves(&mut sim, &before, WHOLE);
        check::converged(&sim);
        assert_eq!(content(&check::view(&sim)).len(), stored.len());
    }
}

#[test]
fn member_that_missed_a_store_generation_may_found_the_next() {
    for seed in 130..135 {
        let mut sim = fleet(seed);
        let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
        sim.agents[2].store_up = false;
        sim.settle();
        empty(&mut sim, 2);
        nothing_leaves(&mut sim, &before, WHOLE);
        // It founds its first store generation, which is the others' second one.
        sim.agents.iter_mut().for_each(|agent| agent.store_up = false);
        sim.settle();
        delete_all(&mut sim);
        sim.agents[2].store_up = true;
        nothing_leaves(&mut sim, &before, Duration::from_secs(20));
        assert_eq!(check::view(&sim).life().number, 1);
        sim.agents.iter_mut().for_each(|agent| agent.store_up = true);
        nothing_leaves(&mut sim, &before, WHOLE);
        assert_eq!(check::view(&sim).life().number, 2);
        is_whole(&sim, &stored);
    }
}
