//! A start without the store: the snapshot serves until the store answers, and not longer.

use std::time::Duration;

use datapath_plan::{FakeDatapath, TableKey};
use ipnetwork::IpNetwork;
use kvstore_schema::StoreIdentity;
use kvstore_store::MemState;
use node_core::{Call, CallErrorKind, IpcacheSource, NodeConfig, Reply};

use chaos_sim::{Agent, Sim, added, check, config, name};

/// Two nodes with one endpoint each, saved in snapshots; then the store is unreachable.
fn cut_off(seed: u64) -> Sim {
    let mut sim = Sim::new(2, seed);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    added(sim.add(2, "b", "app=b"));
    sim.advance(Duration::from_secs(10));
    sim.store_away();
    sim.settle();
    sim
}

fn store_comes_back(sim: &mut Sim) {
    sim.store_back();
    sim.settle();
    sim.advance(Duration::from_secs(60));
    check::converged(sim);
}

#[test]
fn snapshot_keeps_names_over_a_restart_without_the_store() {
    let mut sim = cut_off(30);
    let before = sim.node(1).endpoint(&name("a")).expect("there");
    let steps = sim.agents[0].kernel.steps();
    sim.restart(1);
    sim.settle();
    let after = sim.node(1).endpoint(&name("a")).expect("still known by its name");
    assert_eq!(
        (&after.labels, after.address, after.identity),
        (&before.labels, before.address, before.identity)
    );
    assert_eq!(after.attachment, before.attachment);
    match sim.add(1, "a", "app=a") {
        Ok(Reply::EndpointAdded { address, existed: true, .. }) => assert_eq!(Some(address), before.address),
        other => panic!("{other:?}"),
    }
    assert_eq!(sim.agents[0].kernel.steps(), steps, "not one step was needed");

    let (address, identity) = added(sim.add(1, "c", "app=a"));
    assert_eq!(Some(identity), before.identity);
    let told = sim.node(2).lookup(address).expect("by gossip");
    assert_eq!((told.identity, told.source), (identity, IpcacheSource::Gossip));
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    assert_eq!(
        sim.node(2).lookup(before.address.expect("one")).expect("the block").source,
        IpcacheSource::Cidr
    );
    store_comes_back(&mut sim);
    let names: Vec<String> =
        sim.node(1).endpoints().iter().map(|endpoint| endpoint.name.to_string()).collect();
    assert_eq!(names, ["c"]);
}

#[test]
fn snapshot_keeps_endpoints_that_the_store_never_had() {
    let mut sim = cut_off(31);
    let (address, identity) = added(sim.add(1, "c", "app=a"));
    sim.restart(1);
    sim.settle();
    assert_eq!(sim.node(1).endpoint(&name("c")).expect("known").address, Some(address));
    assert_eq!(sim.node(2).lookup(address).expect("by gossip").identity, identity);
    store_comes_back(&mut sim);
}

#[test]
fn snapshot_restores_a_rebooted_node_without_the_store() {
    let mut sim = cut_off(32);
    sim.gossip = false;
    let before = sim.agents[0].kernel.tables().clone();
    let gone = sim.node(1).endpoint(&name("a")).and_then(|endpoint| endpoint.address).expect("an address");
    sim.reboot(1);
    sim.settle();
    let now = sim.agents[0].kernel.tables();
    assert_eq!((&now.base, &now.nodes, &now.routes), (&before.base, &before.nodes, &before.routes));
    let mut ipcache = before.ipcache;
    ipcache.remove(&IpNetwork::from(gone));
    assert_eq!(now.ipcache, ipcache);
    assert!(now.endpoints.is_empty());
    let warnings = sim.node(1).status().warnings;
    assert!(warnings[0].starts_with("endpoint a is not in the kernel since the restart"), "{warnings:?}");
    added(sim.add(1, "a", "app=a"));
    let warnings = sim.node(1).status().warnings;
    assert!(matches!(&warnings[..], [only] if only.contains("serves from its snapshot")), "{warnings:?}");
    sim.gossip = true;
    store_comes_back(&mut sim);
    assert_eq!(sim.node(1).status().warnings, [] as [String; 0]);
}

#[test]
fn snapshot_that_is_out_of_date_converges_to_the_store() {
    for (seed, store_up) in [(33, true), (34, false)] {
        let mut sim = cut_off(seed);
        store_comes_back(&mut sim);
        let old = sim.agents[0].disk.clone();
        sim.agents[0].stop();
        let (added_later, _) = added(sim.add(2, "later", "app=later"));
        assert_eq!(sim.ask(2, Call::EndpointDelete(name("b"))), Ok(Reply::EndpointDeleted { existed: true }));
        sim.join(config(3));
        sim.settle();
        added(sim.add(3, "third", "app=a"));
        sim.gossip = false;
        sim.agent(1).disk = old;
        sim.agent(1).store_up = store_up;
        sim.restart(1);
        sim.settle();
        sim.advance(Duration::from_secs(5));
        assert!(sim.node(1).endpoint(&name("a")).is_some());
        let known = sim.node(1).lookup(added_later).map(|entry| entry.source);
        assert_eq!(known, Some(if store_up { IpcacheSource::Record } else { IpcacheSource::Cidr }));
        sim.gossip = true;
        store_comes_back(&mut sim);
    }
}

#[test]
fn snapshot_block_that_was_reassigned_is_given_up() {
    // The pool has room for two blocks: the third node gets the block that was the first node's.
    let configs: Vec<_> = (1..=3)
        .map(|n| NodeConfig { pools: vec!["10.0.0.0/23".parse().expect("a pool")], ..config(n) })
        .collect();
    let mut sim = Sim::with(35, configs[..2].to_vec());
    sim.settle();
    sim.advance(Duration::from_secs(10));
    let block = sim.node(1).status().cidrs[0].cidr;
    sim.agent(1).stop();
    sim.advance(Duration::from_secs(40));
    assert_eq!(sim.ask(2, Call::NodeRemove(config(1).node)), Ok(Reply::NodeRemoved));
    sim.advance(Duration::from_secs(3 * 900));
    sim.join(configs[2].clone());
    sim.settle();
    let (address, _) = added(sim.add(3, "c", "app=c"));
    assert!(block.contains(address));

    sim.agent(1).store_up = false;
    sim.agent(1).kernel = FakeDatapath::new();
    sim.restart(1);
    sim.settle();
    sim.advance(Duration::from_secs(5));
    let told = sim.node(1).lookup(address).and_then(|entry| entry.node);
    assert_eq!(told, Some(config(3).node), "the later claim, by gossip");
    sim.agent(1).store_up = true;
    sim.settle();
    let refused = sim.add(1, "a", "app=a").expect_err("there is no block left");
    assert_eq!(refused.kind, CallErrorKind::Exhausted, "{refused}");
    assert_eq!(sim.node(1).status().cidrs, []);
    store_comes_back(&mut sim);
}

#[test]
fn snapshot_of_another_node_or_machine_is_ignored() {
    let sim = cut_off(36);
    let snapshot = sim.agents[0].disk.clone().expect("saved");
    let mut elsewhere = config(1);
    elsewhere.machine_id = "another".to_owned();
    let mut other_fleet = config(1);
    other_fleet.fleet = "other".parse().expect("a name");
    for config in [config(2), elsewhere, other_fleet] {
        let mut stranger = Sim::with(37, vec![config]);
        stranger.agents[0].store_up = false;
        stranger.agent(1).disk = Some(snapshot.clone());
        stranger.restart(1);
        stranger.settle();
        let error = stranger.node(1).status().last_error.expect("told").text;
        assert!(error.starts_with("snapshot not used: it is of "), "{error}");
        assert_eq!(stranger.node(1).nodes().len(), 1);
        let kernel = stranger.agents[0].kernel.tables();
        assert!(kernel.base.is_none() && kernel.nodes.is_empty() && kernel.routes.is_empty(), "{kernel:?}");
    }
}

#[test]
fn snapshot_survives_a_store_wiped_during_a_restart() {
    let mut sim = cut_off(38);
    let before = sim.agents[0].kernel.tables().clone();
    sim.agents.iter_mut().for_each(Agent::stop);
    sim.store = MemState::new(StoreIdentity(2));
    sim.store_back();
    sim.restart(1);
    sim.settle();
    let warnings = sim.node(1).status().warnings;
    assert!(warnings[0].starts_with("the store was emptied: its members write again"), "{warnings:?}");
    sim.advance(Duration::from_secs(700));
    assert_eq!(*sim.agents[0].kernel.tables(), before);
    assert!(sim.node(1).endpoint(&name("a")).is_some());
    sim.restart(2);
    store_comes_back(&mut sim);
    assert_eq!(sim.node(1).status().warnings, [] as [String; 0]);
}

#[test]
fn snapshot_recreates_an_endpoint_missing_from_the_kernel() {
    let mut sim = cut_off(37);
    let id = sim.node(1).endpoint(&name("a")).and_then(|endpoint| endpoint.id).expect("attached");
    sim.restart(1);
    sim.settle();
    sim.agent(1).kernel.damage(&TableKey::Endpoint(id));
    assert!(matches!(sim.ask(1, Call::Audit { repair: true }), Ok(Reply::Audited { .. })));
    assert!(sim.agents[0].kernel.tables().endpoints.contains_key(&id));
    store_comes_back(&mut sim);
}

#[test]
fn endpoint_files_keep_every_answered_call_over_a_kill() {
    let mut sim = cut_off(41);
    let old = sim.agents[0].disk.clone();
    let (address, identity) = added(sim.add(1, "c", "app=b"));
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    // The agent is killed before the snapshot is written.
    sim.halt(1);
    sim.agent(1).disk = old;
    sim.restart(1);
    sim.settle();
    let known = |sim: &Sim| -> Vec<String> {
        sim.node(1).endpoints().iter().map(|endpoint| endpoint.name.to_string()).collect()
    };
    assert_eq!(known(&sim), ["c"]);
    let kept = sim.node(1).endpoint(&name("c")).expect("known");
    assert_eq!((kept.address, kept.identity), (Some(address), Some(identity)));
    assert!(kept.attachment.is_some());
    let warnings = sim.node(1).status().warnings;
    assert!(
        warnings.iter().all(|it| !it.contains("is not in the kernel")),
        "nothing is missed: {warnings:?}"
    );
    // With an endpoint without a name, no endpoint could be added before the store is back.
    added(sim.add(1, "d", "app=b"));
    assert_eq!(known(&sim), ["c", "d"]);
    store_comes_back(&mut sim);
    assert_eq!(known(&sim), ["c", "d"]);
}
