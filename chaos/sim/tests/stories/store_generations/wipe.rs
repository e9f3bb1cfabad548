//! The store is emptied, or another one takes its place.

use std::time::Duration;

use kvstore_claims::FleetView;
use node_core::{Call, Reply};

use super::{WHOLE, content, delete_all, empty, fleet, is_whole, kernels, nothing_leaves, relist, restored};
use chaos_sim::{Agent, Sim, added, check, config};

#[test]
fn store_wiped_under_a_running_fleet_is_restored() {
    for seed in 60..70 {
        let mut sim = fleet(seed);
        let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
        let steps: Vec<_> = sim.agents.iter().map(|agent| agent.kernel.steps()).collect();
        empty(&mut sim, 2);
        nothing_leaves(&mut sim, &before, Duration::from_secs(5));
        let warnings = sim.node(1).status().warnings;
        assert!(warnings[0].starts_with("the store was emptied"), "{warnings:?}");
        nothing_leaves(&mut sim, &before, WHOLE);
        is_whole(&sim, &stored);
        let after: Vec<_> = sim.agents.iter().map(|agent| agent.kernel.steps()).collect();
        assert_eq!(steps, after, "not one step in any kernel");
        assert_eq!(check::view(&sim).life().number, 1);
        added(sim.add(2, "later", "app=later"));
        check::converged(&sim);
    }
}

#[test]
fn store_prefix_that_was_deleted_is_restored() {
    for seed in 70..75 {
        let mut sim = fleet(seed);
        let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
        delete_all(&mut sim);
        nothing_leaves(&mut sim, &before, WHOLE);
        is_whole(&sim, &stored);
    }
}

#[test]
fn store_wiped_twice_is_restored() {
    let mut sim = fleet(76);
    let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
    empty(&mut sim, 2);
    nothing_leaves(&mut sim, &before, Duration::from_secs(3));
    empty(&mut sim, 3);
    nothing_leaves(&mut sim, &before, Duration::from_secs(40));
    empty(&mut sim, 2);
    nothing_leaves(&mut sim, &before, WHOLE);
    is_whole(&sim, &stored);
}

/// All agents were down when it happened: they know what their snapshots contain.
#[test]
fn store_lost_while_agents_were_down_is_restored_at_start() {
    for seed in 170..176 {
        let mut sim = fleet(seed);
        let copy = sim.store.clone();
        added(sim.add(3, "new", "app=new"));
        sim.advance(Duration::from_secs(30));
        // Snapshots do not contain policies.
        let but_policies = |view: &FleetView| -> Vec<String> {
            content(view).into_iter().filter(|line| !line.contains("guard")).collect()
        };
        let (before, stored) = (kernels(&sim), but_policies(&check::view(&sim)));
        let emptied = seed % 2 == 0;
        for n in 1..=3 {
            sim.halt(n);
        }
        if emptied {
            empty(&mut sim, 2);
        } else {
            sim.store.restore(copy);
        }
        for n in 1..=3 {
            sim.restart(n);
        }
        nothing_leaves(&mut sim, &before, WHOLE);
        check::converged(&sim);
        let view = check::view(&sim);
        assert_eq!(but_policies(&view), stored);
        assert_eq!(view.policies().len(), usize::from(!emptied));
    }
}

#[test]
fn store_watch_that_resumes_is_not_a_loss() {
    let mut sim = fleet(151);
    for round in 0..5 {
        added(sim.add(1, &format!("e{round}"), "app=web"));
        sim.advance(Duration::from_secs(60));
        sim.agents.iter_mut().for_each(Agent::break_watch);
        sim.settle();
    }
    let view = check::view(&sim);
    assert_eq!(view.life().number, 0);
    assert!(view.mark().is_some_and(|mark| mark.record.before.len() >= 4), "{:?}", view.mark());
    check::converged(&sim);
}

#[test]
fn records_of_an_absent_node_are_restored_by_others() {
    for wipe in [true, false] {
        let (mut sim, stored) = if wipe {
            let sim = fleet(90);
            let stored = content(&check::view(&sim));
            (sim, stored)
        } else {
            let (sim, _, stored) = restored(91, None);
            (sim, stored)
        };
        sim.halt(2);
        if wipe {
            empty(&mut sim, 2);
        }
        let before = kernels(&sim);
        nothing_leaves(&mut sim, &before, WHOLE);
        sim.advance(config(1).quarantine * 3);
        assert_eq!(content(&check::view(&sim)), stored, "its records too");
        sim.restart(2);
        nothing_leaves(&mut sim, &before, WHOLE);
        is_whole(&sim, &stored);
        // A node that stays away is removed by an operator, as usual.
        sim.halt(3);
        sim.advance(Duration::from_secs(40));
        assert_eq!(sim.ask(1, Call::NodeRemove(config(3).node)), Ok(Reply::NodeRemoved));
        sim.advance(config(1).quarantine * 3);
        assert!(sim.node(1).nodes().iter().all(|node| node.name != config(3).node));
    }
}

#[test]
fn partition_half_finds_its_records_restored() {
    for gossip in [true, false] {
        let mut sim = fleet(93);
        sim.gossip = gossip;
        let stored = content(&check::view(&sim));
        sim.agents[2].store_up = false;
        sim.settle();
        let before = kernels(&sim);
        empty(&mut sim, 2);
        nothing_leaves(&mut sim, &before, WHOLE);
        assert_eq!(content(&check::view(&sim)), stored);
        if gossip {
            // Recorded at a revision that the partitioned half has long seen, in another store generation.
            sim.agents[0].store_up = false;
            let (address, identity) = added(sim.add(1, "other", "app=web"));
            sim.agents[0].store_up = true;
            sim.advance(Duration::from_secs(10));
            let known =
                sim.agents[2].kernel.tables().ipcache.get(&address.into()).map(|entry| entry.identity);
            assert_eq!(known, Some(identity));
        }
        // What the half does meanwhile is recorded later.
        added(sim.add(3, "alone", "app=web"));
        sim.agents[2].store_up = true;
        sim.gossip = true;
        nothing_leaves(&mut sim, &before, WHOLE);
        check::converged(&sim);
        assert_eq!(content(&check::view(&sim)).len(), stored.len() + 1 + usize::from(gossip));
    }
}

#[test]
fn store_of_another_fleet_is_never_written() {
    let mut sim = fleet(95);
    let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
    let mut former = sim.store.clone();
    let mut other = Sim::with(96, vec![config(9)]);
    other.settle();
    std::mem::swap(&mut sim.store, &mut other.store);
    relist(&mut sim);
    let revision = sim.store.revision();
    nothing_leaves(&mut sim, &before, Duration::from_secs(400));
    assert_eq!(sim.store.revision(), revision, "not one write");
    let warnings = sim.node(1).status().warnings;
    assert!(warnings[0].contains("another fleet of this name"), "{warnings:?}");
    // The operator points the node at the right store again.
    std::mem::swap(&mut sim.store, &mut former);
    relist(&mut sim);
    nothing_leaves(&mut sim, &before, WHOLE);
    is_whole(&sim, &stored);
}
