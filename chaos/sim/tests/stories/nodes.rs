//! Nodes and their blocks: joining, filling up, releasing, leaving.

use std::{collections::BTreeSet, time::Duration};

use ipnetwork::IpNetwork;
use node_core::{Call, CallErrorKind, Reply};

use chaos_sim::{Sim, added, check, config, name};

#[test]
fn blocks_of_ten_simultaneous_nodes_are_disjoint() {
    let mut sim = Sim::new(10, 1);
    sim.settle();
    let blocks: BTreeSet<IpNetwork> =
        (1..=10).flat_map(|n| sim.node(n).status().cidrs).map(|claim| claim.cidr).collect();
    assert_eq!(blocks.len(), 10);
    for n in 1..=10 {
        let status = sim.node(n).status();
        assert_eq!(status.warnings, Vec::<String>::new());
        assert_eq!(status.halted, None);
        assert_eq!(sim.node(n).wanted().nodes.len(), 9);
        assert_eq!(sim.node(n).wanted().routes.len(), 10);
    }
    check::converged(&sim);
}

#[test]
fn block_that_is_full_is_followed_by_another() {
    let mut config = config(1);
    config.block_prefix_v4 = 29;
    let mut sim = Sim::with(11, vec![config]);
    sim.settle();
    for n in 0..12 {
        added(sim.add(1, &format!("e{n}"), "app=a"));
    }
    assert_eq!(sim.node(1).status().cidrs.len(), 3, "five addresses each");
    check::converged(&sim);
    // The gateway stays that of the first claim, whatever the order of addresses, also after a restart.
    let gateway = sim.node(1).status().gateway;
    sim.restart(1);
    sim.settle();
    assert_eq!(sim.node(1).status().gateway, gateway);
    check::converged(&sim);
}

#[test]
fn pool_exhaustion_names_the_remedy() {
    let mut config = config(1);
    config.pools = vec!["10.0.0.0/29".parse().expect("a pool")];
    config.block_prefix_v4 = 29;
    let mut sim = Sim::with(12, vec![config]);
    sim.settle();
    for n in 0..5 {
        added(sim.add(1, &format!("e{n}"), "app=a"));
    }
    let error = sim.add(1, "e5", "app=a").expect_err("no address is left");
    assert_eq!(error.kind, CallErrorKind::Exhausted);
    assert_eq!(
        error.text,
        "no pod CIDR is free: pools 10.0.0.0/29 hold 1 claimed and 0 quarantined blocks; remove nodes that are gone (warren node remove), wait for the quarantine to end, or make a fleet with larger pools"
    );
    check::converged(&sim);
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("e0"))), Ok(Reply::EndpointDeleted { existed: true }));
    sim.advance(Duration::from_secs(61));
    added(sim.add(1, "e5", "app=a"));
    check::converged(&sim);
}

#[test]
fn node_name_in_use_halts_the_second_machine() {
    let mut second = config(1);
    second.machine_id = "another".to_owned();
    second.underlay.addresses = vec!["192.0.2.99".parse().expect("an address")];
    let mut sim = Sim::with(13, vec![config(1), second]);
    sim.agents[1].stop();
    sim.settle();
    sim.advance(Duration::from_secs(6));
    sim.restart(2);
    sim.settle();
    let halted = sim.node(2).status().halted.expect("halted");
    assert!(halted.starts_with("node name n1 belongs to another machine that is alive"), "{halted}");
    assert_eq!(sim.agents[1].halts, [halted]);
    let error = sim.add(2, "e", "app=a").expect_err("halted");
    assert_eq!(error.kind, CallErrorKind::Unavailable);
    assert!(sim.agents[1].kernel.tables().base.is_none(), "it claims nothing");
    // When the first machine is gone for good, the second one takes over by itself.
    sim.agents[0].stop();
    sim.advance(Duration::from_secs(90));
    assert_eq!(sim.node(2).status().halted, None);
    added(sim.add(2, "e", "app=a"));
}

#[test]
fn node_with_other_settings_than_the_fleet_halts() {
    let mut odd = config(2);
    odd.tunnel_port = 4789;
    let mut sim = Sim::with(14, vec![config(1), odd]);
    sim.agents[1].stop();
    sim.settle();
    sim.restart(2);
    sim.settle();
    let halted = sim.node(2).status().halted.expect("halted");
    assert!(halted.contains("tunnel_port: here 4789, fleet 8472"), "{halted}");
}

#[test]
fn node_that_left_is_removed_by_the_operator_only() {
    let mut sim = Sim::new(3, 18);
    sim.settle();
    added(sim.add(3, "web", "app=web"));
    let gone = config(3).node;
    sim.advance(Duration::from_secs(6));
    let error = sim.ask(1, Call::NodeRemove(gone.clone())).expect_err("it is alive");
    assert_eq!(error.kind, CallErrorKind::Conflict);
    assert_eq!(
        sim.ask(1, Call::NodeRemove(config(1).node)).expect_err("itself").kind,
        CallErrorKind::Invalid
    );
    sim.agent(3).stop();
    sim.advance(Duration::from_secs(40));
    assert_eq!(sim.node(1).wanted().nodes.len(), 2, "silence removes nothing");
    assert_eq!(sim.ask(1, Call::NodeRemove(gone.clone())), Ok(Reply::NodeRemoved));
    assert_eq!(sim.node(1).wanted().nodes.len(), 1);
    assert_eq!(sim.node(2).wanted().nodes.len(), 1);
    assert_eq!(sim.ask(1, Call::NodeRemove(gone)).expect_err("gone").kind, CallErrorKind::NotFound);
    // The records of the removed node are collected after their quarantine.
    sim.advance(Duration::from_secs(3 * 900));
    let view = check::view(&sim);
    assert_eq!(view.cidrs().len(), 2);
    assert_eq!((view.endpoint_count(), view.identities().len()), (0, 0));
}

#[test]
fn block_without_endpoints_is_released() {
    let mut config = config(1);
    config.block_prefix_v4 = 29;
    let mut sim = Sim::with(19, vec![config]);
    sim.settle();
    for n in 0..6 {
        added(sim.add(1, &format!("e{n}"), "app=a"));
    }
    let [first, second] = sim.node(1).status().cidrs.try_into().expect("two blocks");
    let error = sim.ask(1, Call::CidrRelease(first.cidr)).expect_err("the gateway's");
    assert_eq!(error.kind, CallErrorKind::Conflict);
    let error = sim.ask(1, Call::CidrRelease(second.cidr)).expect_err("in use");
    assert_eq!(
        error.text,
        format!("block {} still has 1 addresses in use: delete the endpoints in it first", second.cidr)
    );
    let unknown = "10.99.0.0/29".parse().expect("a block");
    assert_eq!(sim.ask(1, Call::CidrRelease(unknown)).expect_err("not ours").kind, CallErrorKind::NotFound);
    let inside =
        sim.node(1).endpoints().into_iter().find(|e| e.address.is_some_and(|ip| second.cidr.contains(ip)));
    let inside = inside.expect("one endpoint").name;
    // One endpoint of the first block goes too, so that no further block is wanted.
    let other = sim.node(1).endpoints().into_iter().find(|e| e.name != inside).expect("another").name;
    for endpoint in [inside, other] {
        assert_eq!(sim.ask(1, Call::EndpointDelete(endpoint)), Ok(Reply::EndpointDeleted { existed: true }));
    }
    assert_eq!(sim.ask(1, Call::CidrRelease(second.cidr)), Ok(Reply::CidrReleased(second.cidr)));
    assert_eq!(sim.node(1).status().cidrs.len(), 1);
    sim.advance(Duration::from_secs(2 * 900));
    assert_eq!(check::view(&sim).cidrs().len(), 1, "deleted after its quarantine");
    check::converged(&sim);
}

/// Gives a node another underlay address and MTU.
fn move_to(sim: &mut Sim, n: usize, address: std::net::IpAddr, mtu_bytes: u32) {
    sim.agent(n).config.underlay.mtu_bytes = mtu_bytes;
    sim.readdress(n, address);
}

#[test]
fn node_address_change_is_one_write_on_other_nodes() {
    let mut sim = Sim::new(2, 22);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    let moved: std::net::IpAddr = "192.0.2.77".parse().expect("an address");
    let index = *sim.node(2).wanted().nodes.keys().next().expect("one node");
    move_to(&mut sim, 1, moved, 9000);
    sim.settle();
    assert_eq!(sim.node(2).wanted().nodes[&index].underlay, moved);
    assert_eq!(sim.node(1).status().pod_mtu_bytes, 8950);
    assert_eq!(sim.agents[0].kernel.tables().base.as_ref().expect("a base").mtu_bytes, 8950);
    check::converged(&sim);
}

#[test]
fn node_address_change_without_the_store_is_followed_by_gossip() {
    let mut sim = Sim::new(2, 26);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    let index = *sim.node(2).wanted().nodes.keys().next().expect("one node");
    let at = |sim: &Sim| sim.node(2).wanted().nodes[&index].underlay;
    let address = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");

    sim.agent(1).store_up = false;
    for place in ["192.0.2.77", "192.0.2.78"] {
        move_to(&mut sim, 1, address(place), 1500);
        sim.settle();
        assert_eq!(at(&sim), address(place), "by gossip, though the store answers here");
    }
    sim.agent(1).store_up = true;
    sim.advance(Duration::from_secs(60));
    assert_eq!(at(&sim), address("192.0.2.78"), "the record says so too");
    check::converged(&sim);
}
