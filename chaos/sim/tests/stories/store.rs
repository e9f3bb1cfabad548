//! The store: unreachable, wiped, with invalid records.

use std::time::Duration;

use ipnetwork::IpNetwork;
use node_core::{Call, CallErrorKind, Reply};

use chaos_sim::{Sim, added, check, config, name, spec};

#[test]
fn store_unreachable_at_start_is_used_once_it_is_reachable() {
    let mut sim = Sim::new(2, 15);
    sim.store_away();
    let early = sim.call(1, Call::EndpointAdd(spec("early", "app=a")));
    sim.settle();
    sim.advance(Duration::from_secs(11));
    let error = sim.replies.remove(&early).expect("an answer in bounded time").expect_err("no store");
    assert_eq!(error.kind, CallErrorKind::Unavailable);
    assert_eq!(
        error.text,
        "endpoint early not added in 10 s: the store has not given a number for its labels; label sets that the fleet knows still work (store: no route to it); try again"
    );
    sim.store_back();
    sim.settle();
    added(sim.add(1, "late", "app=a"));
    check::converged(&sim);
}

#[test]
fn store_outage_allows_known_labels_and_gossip_spreads_them() {
    let mut sim = Sim::new(3, 16);
    sim.settle();
    let (_, identity) = added(sim.add(1, "a", "app=a"));
    added(sim.add(1, "doomed", "app=a"));
    sim.store_away();
    sim.settle();
    let (address, same) = added(sim.add(1, "b", "app=a"));
    assert_eq!(same, identity);
    let doomed =
        sim.node(1).endpoint(&name("doomed")).and_then(|endpoint| endpoint.address).expect("an address");
    assert_eq!(
        sim.ask(1, Call::EndpointDelete(name("doomed"))),
        Ok(Reply::EndpointDeleted { existed: true })
    );
    for n in 2..=3 {
        assert_eq!(sim.node(n).lookup(address).expect("by gossip").identity, identity);
        assert_eq!(sim.node(n).lookup(doomed).expect("the block").prefix.prefix(), 24, "gone by gossip");
    }
    sim.advance(Duration::from_secs(120));
    sim.store_back();
    sim.settle();
    sim.advance(Duration::from_secs(11));
    check::converged(&sim);
    assert!(sim.node(1).endpoints().iter().all(|endpoint| endpoint.recorded));
}

#[test]
fn store_record_that_is_invalid_is_rejected_alone() {
    use kvstore_schema::{KvOp, Txn};
    let mut sim = Sim::new(2, 17);
    sim.settle();
    let (address, _) = added(sim.add(1, "good", "app=a"));
    let schema = sim.schema();
    let good = schema.endpoint(&config(1).node, address);
    let value = sim.store.get(&good).expect("a record").value.clone();
    let outside: std::net::IpAddr = "10.99.0.7".parse().expect("an address");
    let stolen: std::net::IpAddr = sim.node(2).status().gateway.expect("a gateway");
    let txn = Txn::new()
        .then(KvOp::Put { key: schema.endpoint(&config(1).node, outside), value: value.clone(), lease: None })
        .then(KvOp::Put { key: schema.endpoint(&"n9".parse().expect("a name"), address), value, lease: None })
        .then(KvOp::Put {
            key: schema.endpoint(&config(1).node, stolen),
            value: b"{\"v\":1,".as_slice().into(),
            lease: None,
        });
    sim.store.txn(&txn).expect("three puts");
    sim.settle();
    let rejected: Vec<String> = sim
        .node(2)
        .rejected()
        .into_iter()
        .map(|record| format!("{}: {}", record.key, record.reason))
        .collect();
    assert_eq!(rejected.len(), 2, "{rejected:?}");
    assert!(rejected[0].contains(&stolen.to_string()), "{rejected:?}");
    assert_eq!(
        rejected[1],
        format!("/warren/v1/test/endpoints/n9/{address}: {address} lies in a pod CIDR of node n1")
    );
    let kernel = sim.agents[1].kernel.tables();
    assert!(kernel.ipcache.contains_key(&IpNetwork::from(address)), "its neighbour goes on");
    assert!(!kernel.ipcache.contains_key(&IpNetwork::from(outside)));
}

#[test]
fn gossip_that_is_late_does_not_resurrect_an_endpoint() {
    let mut sim = Sim::new(2, 24);
    sim.settle();
    sim.gossip = false;
    let (ip, identity) = added(sim.add(1, "a", "app=a"));
    let status = sim.node(1).status();
    let labels: identity::Labels = "app=a".parse().expect("labels");
    let late = node_facts::NodeFacts {
        fleet_id: status.fleet_id.expect("joined"),
        node: status.node,
        incarnation: status.incarnation,
        underlay: status.underlay,
        moves: 0,
        gateway: status.gateway,
        cidrs: vec![node_facts::CidrFact {
            cidr: status.cidrs[0].cidr,
            life: 0,
            epoch: status.cidrs[0].epoch,
        }],
        applied_generation: 0,
        recorded_life: 0,
        cut_off: false,
        recorded_revision: 0,
        health: node_facts::NodeHealth::Ok,
        unwell: vec![],
        pending: vec![node_facts::PendingEndpoint {
            ip,
            identity,
            labels_digest: labels.digest(),
            labels,
            name: name("a"),
            terminating: false,
            op: node_facts::PendingOp::Added,
            sequence: 1,
            recorded: None,
        }],
    };
    sim.agent(2).hear(late.clone());
    sim.settle();
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    sim.agent(2).hear(late);
    sim.settle();
    check::converged(&sim);
}

#[test]
fn gossip_before_the_fleet_was_known_counts_afterwards() {
    let mut sim = Sim::new(2, 25);
    sim.agents[1].store_up = false;
    sim.settle();
    let (_, identity) = added(sim.add(1, "a", "app=a"));
    sim.agents[0].store_up = false;
    sim.settle();
    // Only gossip knows this endpoint, and only now, when node 2 cannot judge it yet.
    let (address, _) = added(sim.add(1, "b", "app=a"));
    sim.advance(Duration::from_secs(1));
    assert_eq!(sim.node(2).lookup(address), None);
    sim.gossip = false;
    sim.agents[1].store_up = true;
    sim.settle();
    sim.advance(Duration::from_secs(60));
    assert_eq!(sim.node(2).lookup(address).expect("by gossip").identity, identity);
    assert_eq!(sim.node(2).rejected(), []);
}

#[test]
fn gossip_entries_stay_until_the_store_has_caught_up() {
    let mut sim = Sim::new(2, 26);
    sim.settle();
    let (ip, _) = added(sim.add(1, "a", "app=a"));
    sim.store_away();
    sim.settle();
    let (address, identity) = added(sim.add(1, "b", "app=a"));
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    // The owner reaches the store again, and stops gossiping what is recorded now; the other node does not reach the
    // store.
    sim.agent(1).store_up = true;
    sim.settle();
    sim.advance(Duration::from_secs(30));
    assert!(sim.node(1).endpoints().iter().all(|endpoint| endpoint.recorded));
    assert_eq!(sim.node(2).lookup(address).expect("still there").identity, identity);
    assert_eq!(sim.node(2).lookup(ip).expect("the block").prefix.prefix(), 24, "and the other still gone");
    sim.store_back();
    sim.settle();
    check::converged(&sim);
}

#[test]
fn gossip_entries_survive_a_restart_until_gossip_was_heard() {
    let mut sim = Sim::new(3, 27);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    sim.agent(1).store_up = false;
    sim.settle();
    let (address, identity) = added(sim.add(1, "b", "app=a"));
    sim.gossip = false;
    sim.restart(2);
    sim.settle();
    sim.advance(Duration::from_secs(5));
    let known = |sim: &Sim| sim.agents[1].kernel.tables().ipcache.get(&IpNetwork::from(address)).copied();
    assert_eq!(known(&sim).expect("not forgotten").identity, identity);
    sim.gossip = true;
    sim.advance(Duration::from_secs(60));
    assert_eq!(known(&sim).expect("told again").identity, identity);
    sim.store_back();
    sim.settle();
    check::converged(&sim);
}

/// Recorded facts leave gossip: a node that comes too late for them, and cannot reach the store, needs them again.
#[test]
fn gossip_repeats_recorded_facts_for_a_node_without_the_store() {
    let mut sim = Sim::new(3, 41);
    sim.settle();
    let (gone, identity) = added(sim.add(1, "gone", "app=a"));
    let delete = |sim: &mut Sim, endpoint| {
        assert_eq!(
            sim.ask(1, Call::EndpointDelete(name(endpoint))),
            Ok(Reply::EndpointDeleted { existed: true })
        );
    };
    // The watch is gone, and gossip has not gone round yet.
    sim.gossip = false;
    sim.agents[2].store_up = false;
    sim.settle();
    let (early, _) = added(sim.add(1, "early", "app=a"));
    delete(&mut sim, "gone");
    assert!(sim.node(1).endpoints().iter().all(|endpoint| endpoint.recorded));
    assert_eq!(sim.node(3).lookup(early).expect("the block").identity, identity::Identity::UNKNOWN);
    sim.gossip = true;
    sim.advance(Duration::from_secs(3));
    assert_eq!(sim.node(3).lookup(early).expect("told again").identity, identity);
    assert_eq!(sim.node(3).lookup(gone).expect("the block").prefix.prefix(), 24, "told again");
    // Both the telling and the told agent are restarted.
    sim.restart(1);
    sim.advance(Duration::from_secs(3));
    let (late, _) = added(sim.add(1, "late", "app=a"));
    sim.reboot(3);
    sim.advance(Duration::from_secs(15));
    for address in [early, late] {
        assert_eq!(sim.node(3).lookup(address).expect("told again").identity, identity);
    }
    // Nothing that was deleted since is resurrected by the store.
    delete(&mut sim, "early");
    sim.gossip = false;
    delete(&mut sim, "late");
    sim.agents[2].store_up = true;
    sim.settle();
    sim.advance(Duration::from_secs(3));
    for address in [early, late, gone] {
        assert_eq!(sim.node(3).lookup(address).expect("the block").prefix.prefix(), 24, "{address} is gone");
    }
    sim.gossip = true;
    sim.advance(Duration::from_secs(11));
    check::converged(&sim);
}
