//! Services over a restart of the agent, and without the store.

use std::time::Duration;

use node_core::{Call, CallErrorKind, Expected};

use super::{at, delete, expect, fleet, meaning, put, selecting, served};
use chaos_sim::added;

#[test]
fn service_tables_survive_a_restart_unchanged() {
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
        // After the first audit that may remove something.
        sim.advance(Duration::from_secs(400));
        assert_eq!(sim.agents[n - 1].kernel.tables(), &before);
        assert_eq!(sim.agents[n - 1].kernel.steps(), steps, "not one step was needed");
    }
}

#[test]
fn services_are_restored_from_the_snapshot_after_a_reboot() {
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
fn services_are_not_pruned_before_the_store_was_listed() {
    let (mut sim, _) = fleet(64);
    put(&mut sim, 1, "web", selecting("app=web", 80));
    put(&mut sim, 1, "db", selecting("app=db", 5432));
    sim.advance(Duration::from_secs(20));
    let before = served(&sim);
    // Nothing is known of the fleet, and there is no gossip.
    sim.store_away();
    sim.gossip = false;
    sim.settle();
    sim.agents[0].disk = None;
    sim.restart(1);
    sim.advance(Duration::from_secs(400));
    assert_eq!(meaning(sim.agents[0].kernel.tables()), before);
    // What was deleted meanwhile goes once that is known.
    sim.gossip = true;
    sim.store_back();
    sim.settle();
    assert!(delete(&mut sim, 2, "db"));
    sim.advance(Duration::from_secs(400));
    assert_eq!(served(&sim).len(), 1);
    assert_eq!(served(&sim).values().next(), before.values().find(|members| members.len() == 2));
}

/// A peer cannot reach the store: its endpoint is known by gossip alone, and after a restart only after a while.
#[test]
fn backend_known_from_gossip_only_survives_a_restart() {
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
fn services_work_without_the_store_but_are_not_written() {
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
    // Endpoints still arrive, by gossip.
    let (told, _) = added(sim.add(2, "d", "app=web"));
    sim.settle();
    expect(&sim, [(format!("{vip}:80 tcp"), vec![at(web[0]), at(web[1]), at(told)])]);
}
