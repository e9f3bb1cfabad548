//! What a node can do without the store: addresses in reserve, identities that the fleet knows.

use std::time::Duration;

use datapath_plan::NodeIndex;
use identity::Identity;
use ipnetwork::IpNetwork;
use node_core::{Call, CallErrorKind, IpcacheSource, NodeConfig, Reply};
use node_facts::{CidrFact, NodeFacts, NodeHealth};

use chaos_sim::{Sim, added, check, config, name, spec};

fn everybody(sim: &mut Sim, store_up: bool) {
    sim.agents.iter_mut().for_each(|agent| agent.store_up = store_up);
    sim.settle();
}

fn heal(sim: &mut Sim) {
    everybody(sim, true);
    sim.advance(Duration::from_secs(60));
    check::converged(sim);
}

#[test]
fn identity_known_from_other_nodes_needs_no_store() {
    let mut sim = Sim::new(3, 50);
    sim.settle();
    let (_, identity) = added(sim.add(1, "a", "app=a"));
    everybody(&mut sim, false);
    let (address, same) = added(sim.add(2, "b", "app=a"));
    assert_eq!(same, identity);
    let seen = sim.node(3).lookup(address).expect("by gossip");
    assert_eq!((seen.identity, seen.source), (identity, IpcacheSource::Gossip));
    heal(&mut sim);
}

#[test]
fn identity_known_from_gossip_needs_no_store() {
    let mut sim = Sim::new(2, 51);
    sim.settle();
    sim.agent(2).store_up = false;
    sim.settle();
    // Node 2 learns of the endpoint by gossip, and must keep it long enough: node 1 is cut off before it sees its
    // record.
    let call = sim.call(1, Call::EndpointAdd(spec("a", "app=new")));
    while !sim.replies.contains_key(&call) {
        assert_eq!(sim.step(), Ok(true));
    }
    sim.agent(1).store_up = false;
    sim.settle();
    let (_, identity) = added(sim.replies.remove(&call).expect("an answer"));
    assert_eq!(sim.node(2).identities().iter().filter(|known| known.reserved.is_none()).count(), 0);
    assert_eq!(added(sim.add(2, "b", "app=new")).1, identity);
    heal(&mut sim);
}

#[test]
fn identity_used_without_the_store_is_not_collected() {
    let mut sim = Sim::new(3, 52);
    sim.settle();
    let (_, identity) = added(sim.add(1, "a", "app=a"));
    sim.agent(2).store_up = false;
    sim.settle();
    let (_, same) = added(sim.add(2, "b", "app=a"));
    assert_eq!(same, identity);
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    sim.advance(config(1).quarantine * 3);
    let view = check::view(&sim);
    assert!(view.refs(identity).is_empty(), "it has no reference");
    assert!(view.identities().contains_key(&identity), "it is there all the same");
    // A node that was silent for so long says nothing about identities any more.
    let call = sim.call(2, Call::EndpointAdd(spec("c", "app=a")));
    sim.settle();
    assert_eq!(added(sim.replies.remove(&call).expect("used on this node, so known")).1, identity);
    heal(&mut sim);
    assert_eq!(sim.node(2).endpoint(&name("b")).and_then(|b| b.identity), Some(identity));
}

#[test]
fn identity_allocation_waits_after_half_a_quarantine_of_silence() {
    let mut sim = Sim::new(2, 53);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    sim.advance(Duration::from_secs(20));
    everybody(&mut sim, false);
    sim.advance(config(1).quarantine / 2);
    let call = sim.call(2, Call::EndpointAdd(spec("b", "app=a")));
    sim.settle();
    sim.advance(Duration::from_secs(11));
    let error = sim.replies.remove(&call).expect("an answer").expect_err("too old to be sure");
    assert_eq!(error.kind, CallErrorKind::Unavailable, "{error}");
    heal(&mut sim);
}

/// The wall clock is set back while the store is silent: the silence is as long as it is.
#[test]
fn silence_of_the_store_is_not_shortened_by_a_wall_clock_that_is_set_back() {
    for set_back in [0, 100, config(1).quarantine.as_secs() / 2 + 15] {
        let mut sim = Sim::new(2, 53);
        sim.settle();
        added(sim.add(1, "a", "app=a"));
        sim.advance(Duration::from_secs(60));
        everybody(&mut sim, false);
        sim.advance(config(1).quarantine / 2 + Duration::from_secs(10));
        sim.agent(2).wall_behind = Duration::from_secs(set_back);
        let call = sim.call(2, Call::EndpointAdd(spec("b", "app=a")));
        sim.settle();
        sim.advance(Duration::from_secs(11));
        let answer = sim.replies.remove(&call).expect("an answer");
        assert!(answer.is_err(), "{set_back}: {answer:?}");
        heal(&mut sim);
    }
}

/// Blocks of five addresses.
fn small(n: u8, reserve: u8) -> NodeConfig {
    NodeConfig { block_prefix_v4: 29, address_reserve: reserve, ..config(n) }
}

#[test]
fn reserve_claims_the_next_block_before_the_last_address_is_taken() {
    let mut sim = Sim::with(54, vec![small(1, 3)]);
    sim.settle();
    for n in 0..3 {
        assert_eq!(sim.node(1).status().cidrs.len(), 1, "{n}");
        added(sim.add(1, &format!("e{n}"), "app=a"));
    }
    assert_eq!(sim.node(1).status().cidrs.len(), 2, "two of five were left");
    sim.advance(Duration::from_secs(10));
    everybody(&mut sim, false);
    for n in 3..10 {
        added(sim.add(1, &format!("e{n}"), "app=a"));
    }
    let waits = sim.call(1, Call::EndpointAdd(spec("e10", "app=a")));
    sim.settle();
    sim.advance(Duration::from_secs(11));
    let error = sim.replies.remove(&waits).expect("an answer").expect_err("the reserve is used up");
    assert_eq!(error.kind, CallErrorKind::Unavailable, "{error}");
    assert_eq!(
        sim.node(1).status().warnings,
        ["0 addresses are free on this node, 3 are wanted in reserve: the store does not answer"]
    );
    heal(&mut sim);
    assert_eq!(sim.node(1).status().cidrs.len(), 3);
}

#[test]
fn reserve_shortage_is_reported_while_it_lasts() {
    let pool = vec!["10.0.0.0/29".parse().expect("a pool")];
    // A reserve is at most one block.
    let mut sim = Sim::with(55, vec![NodeConfig { pools: pool, ..small(1, 200) }]);
    sim.settle();
    assert_eq!(sim.node(1).status().warnings, [] as [String; 0]);
    added(sim.add(1, "a", "app=a"));
    let warnings = sim.node(1).status().warnings;
    assert!(
        warnings[0]
            .starts_with("4 addresses are free on this node, 5 are wanted in reserve: no pod CIDR is free"),
        "{warnings:?}"
    );
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    assert_eq!(sim.node(1).status().warnings, [] as [String; 0]);
}

#[test]
fn node_address_that_belongs_to_a_workload_is_rejected() {
    let mut sim = Sim::new(2, 56);
    sim.settle();
    let (theirs, identity) = added(sim.add(2, "b", "app=b"));
    let (ours, _) = added(sim.add(1, "a", "app=a"));
    everybody(&mut sim, false);
    let lie = |underlay, gateway| NodeFacts {
        fleet_id: sim.node(1).status().fleet_id.expect("joined"),
        node: "liar".parse().expect("a name"),
        incarnation: 1_000_000,
        moves: 0,
        underlay: vec![underlay],
        gateway: Some(gateway),
        cidrs: vec![CidrFact { cidr: "10.0.250.0/24".parse().expect("a block"), life: 0, epoch: 1_000 }],
        applied_generation: 0,
        recorded_life: 0,
        cut_off: false,
        recorded_revision: 0,
        health: NodeHealth::Ok,
        pending: Vec::new(),
        unwell: Vec::new(),
    };
    let honest: std::net::IpAddr = "192.0.2.66".parse().expect("an address");
    for facts in [lie(honest, theirs), lie(honest, ours), lie(theirs, honest)] {
        sim.agent(1).hear(facts);
        sim.settle();
        let kernel = sim.agents[0].kernel.tables();
        assert_eq!(kernel.ipcache[&IpNetwork::from(theirs)].identity, identity);
        assert_eq!(kernel.ipcache[&IpNetwork::from(ours)].node, NodeIndex::SELF);
        assert_ne!(kernel.ipcache[&IpNetwork::from(ours)].identity, Identity::REMOTE_NODE);
        assert!(kernel.nodes.values().all(|node| node.underlay != theirs));
    }
    let rejected = sim.node(1).rejected();
    assert_eq!(rejected[0].reason, format!("its underlay address {theirs} lies in a pod CIDR of node n2"));
}
