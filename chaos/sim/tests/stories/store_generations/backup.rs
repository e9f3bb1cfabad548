//! The store is restored from a backup.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use identity::Identity;
use kvstore_schema::{Key, Revision, record::FleetRecord};
use kvstore_store::MemState;
use node_core::{Call, EndpointView, Node, NodeConfig, Reply};

use super::{WHOLE, content, empty, fleet, is_whole, kernels, nothing_leaves, put, relist, restored};
use chaos_sim::{Agent, Sim, added, check, config, name};

#[test]
fn store_restored_from_an_old_backup_is_updated() {
    for seed in 80..85 {
        for cluster in [None, Some(9)] {
            let (mut sim, before, stored) = restored(seed, cluster);
            nothing_leaves(&mut sim, &before, WHOLE);
            check::converged(&sim);
            // Label sets of the backup that nobody uses now are collected like any others.
            sim.advance(config(1).quarantine * 3);
            is_whole(&sim, &stored);
        }
    }
}

/// A backup under the same cluster id, written to by others until its revision is higher than what the nodes know.
#[test]
fn store_backup_with_a_higher_revision_is_detected_by_its_mark() {
    for seed in 140..150 {
        for reconnect in [Agent::relist, Agent::break_watch] {
            let mut sim = fleet(seed);
            let copy = sim.store.clone();
            // Only new records: in the backup they look deleted.
            added(sim.add(3, "new", "app=new"));
            sim.advance(Duration::from_secs(30));
            let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
            let away = seed % 2 == 0;
            if away {
                sim.halt(3);
            }
            sim.restore_and_pass(copy);
            sim.agents.iter_mut().for_each(reconnect);
            nothing_leaves(&mut sim, &before, Duration::from_secs(5));
            let warnings = sim.node(1).status().warnings;
            assert!(warnings.iter().any(|text| text.contains("its members write again")), "{warnings:?}");
            nothing_leaves(&mut sim, &before, WHOLE);
            if away {
                sim.restart(3);
                nothing_leaves(&mut sim, &before, WHOLE);
            }
            is_whole(&sim, &stored);
        }
    }
}

/// A backup of the time when `app=own1` had another identity; that one was collected since, and the label set has a
/// new one on two nodes.
fn renumbered(seed: u64) -> (Sim, MemState) {
    let mut sim = fleet(seed);
    let copy = sim.store.clone();
    let number = |sim: &Sim| {
        let of = |endpoint: &EndpointView| endpoint.labels.to_string().contains("app=own1");
        sim.node(1).endpoints().iter().find(|endpoint| of(endpoint)).and_then(|endpoint| endpoint.identity)
    };
    let former = number(&sim).expect("it has one");
    sim.ask(1, Call::EndpointDelete(name("own"))).expect("deleted");
    sim.advance(config(1).quarantine * 3);
    for n in 1..=2 {
        added(sim.add(n, "again", "app=own1"));
    }
    sim.advance(Duration::from_secs(10));
    let later = number(&sim).expect("it has one");
    assert_ne!(former, later);
    (sim, copy)
}

#[test]
fn identity_in_use_wins_over_an_old_backup() {
    for seed in 110..120 {
        let (mut sim, copy) = renumbered(seed);
        let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
        sim.store.restore(copy);
        relist(&mut sim);
        nothing_leaves(&mut sim, &before, WHOLE);
        check::converged(&sim);
        sim.advance(config(1).quarantine * 3);
        is_whole(&sim, &stored);
    }
}

/// A node that knows nothing else has taken the backup's identity: the others find that, and adopt it.
#[test]
fn identity_of_a_backup_that_is_in_use_is_adopted_by_all() {
    for seed in 160..170 {
        let (mut sim, copy) = renumbered(seed);
        let numbers = |sim: &Sim| -> BTreeSet<Option<Identity>> {
            let endpoints =
                sim.agents.iter().filter_map(|agent| agent.node.as_ref()).flat_map(Node::endpoints);
            let ours = endpoints.filter(|endpoint| endpoint.labels.to_string().contains("app=own1"));
            ours.map(|endpoint| endpoint.identity).collect()
        };
        let later = numbers(&sim);
        sim.store_away();
        sim.gossip = false;
        sim.settle();
        sim.store.restore(copy);
        sim.join(config(4));
        sim.settle();
        let (_, former) = added(sim.add(4, "again", "app=own1"));
        assert!(!later.contains(&Some(former)));
        sim.store_back();
        sim.gossip = true;
        sim.agents.iter_mut().for_each(Agent::relist);
        sim.settle();
        sim.advance(WHOLE);
        check::converged(&sim);
        assert_eq!(numbers(&sim), [Some(former)].into(), "one number");
        sim.advance(config(1).quarantine * 3);
        let view = check::view(&sim);
        assert!(later.iter().flatten().all(|number| !view.identities().contains_key(number)), "collected");
        check::converged(&sim);
    }
}

#[test]
fn block_that_moved_since_the_backup_goes_to_its_later_owner() {
    // The pool has room for two blocks: the third node gets the block that was the second node's.
    let configs: Vec<_> = (1..=3)
        .map(|n| NodeConfig { pools: vec!["10.0.0.0/23".parse().expect("a pool")], ..config(n) })
        .collect();
    {
        let mut sim = Sim::with(98, configs[..2].to_vec());
        sim.settle();
        added(sim.add(1, "web", "app=web"));
        sim.advance(Duration::from_secs(10));
        let copy = sim.store.clone();
        sim.halt(2);
        sim.advance(Duration::from_secs(40));
        assert_eq!(sim.ask(1, Call::NodeRemove(config(2).node)), Ok(Reply::NodeRemoved));
        sim.advance(config(1).quarantine * 3);
        sim.join(configs[2].clone());
        sim.settle();
        let (address, _) = added(sim.add(3, "web", "app=web"));
        sim.advance(Duration::from_secs(10));
        sim.store.restore(copy);
        relist(&mut sim);
        // The later owner has claimed the block again when the former one comes back.
        sim.advance(Duration::from_secs(5));
        sim.restart(2);
        sim.settle();
        sim.advance(WHOLE);
        let owner: BTreeMap<_, _> =
            check::view(&sim).cidrs().iter().map(|(cidr, e)| (*cidr, e.record.node.clone())).collect();
        let block = owner.iter().find(|(cidr, _)| cidr.contains(address)).expect("claimed");
        assert_eq!(*block.1, config(3).node, "{owner:?}");
        check::converged(&sim);
    }
}

#[test]
fn store_generation_distinguishes_fleets() {
    // A backup of a former store generation is older, whatever its revision.
    let mut sim = fleet(99);
    let mut copy = sim.store.clone();
    let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
    empty(&mut sim, 2);
    nothing_leaves(&mut sim, &before, WHOLE);
    while copy.revision() < Revision(10_000) {
        put(&mut copy, Key::from_raw("/elsewhere"), b"x".as_slice().into());
    }
    sim.store = copy;
    relist(&mut sim);
    nothing_leaves(&mut sim, &before, WHOLE);
    is_whole(&sim, &stored);
    let record: FleetRecord = check::view(&sim).fleet().expect("there").record.clone();
    assert_eq!((record.life.number, record.life.restoring), (2, false));
}
