//! Stories of a fleet: what happens, and what must then be so.

mod support;

use std::{collections::BTreeSet, time::Duration};

use datapath_plan::{OpErrorKind, TableKey};
use identity::Identity;
use ipnetwork::IpNetwork;
use node_core::{Call, CallErrorKind, Reply};
use support::{Sim, check, config, name, spec};

fn added(reply: Result<Reply, node_core::CallError>) -> (std::net::IpAddr, Identity) {
    match reply {
        Ok(Reply::EndpointAdded { address, identity, .. }) => (address, identity),
        other => panic!("not added: {other:?}"),
    }
}

#[test]
fn ten_nodes_at_one_moment_claim_disjoint_blocks() {
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
fn a_hundred_endpoints_with_ten_label_sets_have_ten_identities() {
    let mut sim = Sim::new(5, 2);
    sim.settle();
    let calls: Vec<_> = (0..100)
        .map(|n| sim.call(n % 5 + 1, Call::EndpointAdd(spec(&format!("e{n}"), &format!("app=a{}", n % 10)))))
        .collect();
    sim.settle();
    let identities: BTreeSet<Identity> =
        calls.iter().map(|call| added(sim.replies.remove(call).expect("an answer")).1).collect();
    assert_eq!(identities.len(), 10);
    assert_eq!(check::view(&sim).identities().len(), 10);
    check::converged(&sim);
}

#[test]
fn an_endpoint_is_known_everywhere_and_gone_everywhere() {
    let mut sim = Sim::new(3, 3);
    sim.settle();
    let (address, identity) = added(sim.add(1, "web", "app=web"));
    check::converged(&sim);
    for n in 1..=3 {
        let entry = sim.node(n).lookup(address).expect("an entry");
        assert_eq!((entry.identity, entry.node.expect("a node").as_str()), (identity, "n1"));
        assert_eq!(entry.labels.to_string(), "app=web");
    }
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("web"))), Ok(Reply::EndpointDeleted { existed: true }));
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("web"))), Ok(Reply::EndpointDeleted { existed: false }));
    check::converged(&sim);
    for n in 1..=3 {
        assert_eq!(sim.node(n).lookup(address).expect("the block").prefix.prefix(), 24);
    }
    // The address rests, so the next endpoint has another one.
    assert_ne!(added(sim.add(1, "web", "app=web")).0, address);
}

#[test]
fn the_same_call_again_answers_the_same_and_another_one_conflicts() {
    let mut sim = Sim::new(1, 4);
    sim.settle();
    let first = added(sim.add(1, "web", "app=web"));
    match sim.add(1, "web", "app=web") {
        Ok(Reply::EndpointAdded { address, identity, existed: true, .. }) => {
            assert_eq!((address, identity), first)
        }
        other => panic!("{other:?}"),
    }
    let error = sim.add(1, "web", "app=db").expect_err("other labels");
    assert_eq!(error.kind, CallErrorKind::Conflict);
    assert_eq!(
        error.text,
        "endpoint web exists with labels {app=web}; delete it first, or choose another name"
    );
    let mut other = spec("web2", "app=web");
    other.attachment = spec("web", "").attachment;
    let error = sim.ask(1, Call::EndpointAdd(other)).expect_err("the same interface");
    assert_eq!(
        error.text,
        "interface eth0 of /run/netns/web belongs to endpoint web; delete that one first, or name another interface"
    );
}

#[test]
fn wanted_addresses_are_given_or_refused_with_the_reason() {
    let mut sim = Sim::new(1, 5);
    sim.settle();
    let block = sim.node(1).status().cidrs[0].cidr;
    let at = |host: u32| -> std::net::IpAddr {
        let std::net::IpAddr::V4(base) = block.network() else { panic!("an IPv4 pool") };
        std::net::Ipv4Addr::from(u32::from(base) + host).into()
    };
    let mut wanted = |endpoint: &str, address| {
        let spec = node_core::EndpointSpec { address: Some(address), ..spec(endpoint, "app=web") };
        sim.ask(1, Call::EndpointAdd(spec))
    };
    assert_eq!(added(wanted("a", at(77))).0, at(77));
    assert_eq!(wanted("b", at(77)).expect_err("taken").kind, CallErrorKind::Conflict);
    let error = wanted("c", "10.99.0.1".parse().expect("an address")).expect_err("elsewhere");
    assert_eq!(error.kind, CallErrorKind::Invalid);
    assert_eq!(
        error.text,
        format!(
            "address 10.99.0.1 is not one that this node may give to an endpoint: its pod CIDRs are {block}"
        )
    );
    assert_eq!(wanted("d", at(1)).expect_err("the gateway").kind, CallErrorKind::Invalid);
}

#[test]
fn a_restart_changes_nothing_in_the_kernel() {
    let mut sim = Sim::new(3, 6);
    sim.settle();
    for n in 1..=3 {
        for endpoint in ["a", "b"] {
            added(sim.add(n, endpoint, &format!("app={endpoint}")));
        }
    }
    sim.advance(Duration::from_secs(1));
    let before = sim.agents[0].kernel.clone();
    let others: Vec<_> = sim.agents[1..].iter().map(|agent| agent.kernel.steps()).collect();
    sim.restart(1);
    sim.settle();
    sim.advance(Duration::from_secs(600));
    assert_eq!(sim.agents[0].kernel.tables(), before.tables());
    assert_eq!(sim.agents[0].kernel.steps(), before.steps(), "not one step was needed");
    assert_eq!(sim.agents[1..].iter().map(|agent| agent.kernel.steps()).collect::<Vec<_>>(), others);
    let names: Vec<String> =
        sim.node(1).endpoints().iter().map(|endpoint| endpoint.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    check::converged(&sim);
    // And it is whole: it deletes what the former agent made.
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    check::converged(&sim);
}

#[test]
fn a_restart_without_the_store_keeps_everything() {
    let mut sim = Sim::new(2, 7);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    added(sim.add(2, "b", "app=b"));
    let before = sim.agents[0].kernel.clone();
    sim.agent(1).store_up = false;
    sim.restart(1);
    sim.settle();
    sim.advance(Duration::from_secs(400));
    assert_eq!(sim.agents[0].kernel.tables(), before.tables());
    assert_eq!(sim.node(1).status().store.lost.as_deref(), Some("no route to it"));
    sim.agent(1).store_up = true;
    sim.settle();
    sim.advance(Duration::from_secs(20));
    assert_eq!(sim.agents[0].kernel.steps(), before.steps());
    check::converged(&sim);
}

#[test]
fn an_audit_shows_damage_and_repairs_it_when_asked() {
    let mut sim = Sim::new(2, 8);
    sim.settle();
    let (address, _) = added(sim.add(2, "web", "app=web"));
    let key = TableKey::Ipcache(IpNetwork::from(address));
    sim.agent(1).kernel.damage(&key);
    let audit = |repair| Call::Audit { repair };
    let found = match sim.ask(1, audit(false)) {
        Ok(Reply::Audited { differences }) => differences,
        other => panic!("{other:?}"),
    };
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with(&format!("ipcache {address}/32: missing, wanted identity ")), "{found:?}");
    assert!(!sim.agents[0].kernel.tables().ipcache.contains_key(&IpNetwork::from(address)), "only shown");
    assert_eq!(sim.ask(1, audit(true)), Ok(Reply::Audited { differences: found }));
    assert_eq!(sim.node(1).counters().audit_repaired.get("ipcache"), Some(&1));
    assert_eq!(sim.ask(1, audit(true)), Ok(Reply::Audited { differences: Vec::new() }));
    check::converged(&sim);
}

#[test]
fn the_audit_repairs_by_itself_within_its_interval() {
    let mut sim = Sim::new(2, 9);
    sim.settle();
    let (address, _) = added(sim.add(2, "web", "app=web"));
    sim.agent(1).kernel.damage(&TableKey::Ipcache(IpNetwork::from(address)));
    sim.advance(config(1).audit_interval * 2);
    check::converged(&sim);
}

#[test]
fn an_endpoint_that_cannot_be_attached_leaves_nothing() {
    let mut sim = Sim::new(1, 10);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    let next = datapath_plan::EndpointId(2);
    sim.agent(1).kernel.fail(TableKey::Endpoint(next), OpErrorKind::NamespaceGone);
    let id = sim.call(1, Call::EndpointAdd(spec("b", "app=b")));
    sim.settle();
    let error = sim.replies.remove(&id).expect("an answer").expect_err("not attached");
    assert_eq!(error.kind, CallErrorKind::Invalid);
    assert_eq!(error.text, "endpoint b not attached: endpoints 2: failed as the test wants");
    sim.agent(1).kernel.heal(&TableKey::Endpoint(next));
    sim.advance(Duration::from_secs(61));
    assert_eq!(sim.node(1).endpoints().len(), 1);
    check::converged(&sim);
}

#[test]
fn a_full_block_is_followed_by_another_one() {
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
fn an_exhausted_pool_is_an_answer_that_says_what_to_do() {
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
fn two_machines_of_one_name_halt_the_second() {
    let mut second = config(1);
    second.machine_id = "another".to_owned();
    second.underlay = vec!["192.0.2.99".parse().expect("an address")];
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
    // When the first one is gone for good, the second takes over by itself.
    sim.agents[0].stop();
    sim.advance(Duration::from_secs(90));
    assert_eq!(sim.node(2).status().halted, None);
    added(sim.add(2, "e", "app=a"));
}

#[test]
fn other_settings_than_the_fleets_halt_the_node() {
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
fn a_store_that_is_away_at_the_start_and_comes_later() {
    let mut sim = Sim::new(2, 15);
    sim.agents.iter_mut().for_each(|agent| agent.store_up = false);
    let early = sim.call(1, Call::EndpointAdd(spec("early", "app=a")));
    sim.settle();
    sim.advance(Duration::from_secs(11));
    let error = sim.replies.remove(&early).expect("an answer in bounded time").expect_err("no store");
    assert_eq!(error.kind, CallErrorKind::Unavailable);
    assert_eq!(
        error.text,
        "endpoint early not added in 10 s: the store has not given a number for its labels; label sets in use on this node still work (store: no route to it); try again"
    );
    sim.agents.iter_mut().for_each(|agent| agent.store_up = true);
    sim.settle();
    added(sim.add(1, "late", "app=a"));
    check::converged(&sim);
}

#[test]
fn without_the_store_known_labels_still_work_and_reach_everybody_by_gossip() {
    let mut sim = Sim::new(3, 16);
    sim.settle();
    let (_, identity) = added(sim.add(1, "a", "app=a"));
    added(sim.add(1, "doomed", "app=a"));
    sim.agents.iter_mut().for_each(|agent| agent.store_up = false);
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
    sim.agents.iter_mut().for_each(|agent| agent.store_up = true);
    sim.settle();
    sim.advance(Duration::from_secs(11));
    check::converged(&sim);
    assert!(sim.node(1).endpoints().iter().all(|endpoint| endpoint.recorded));
}

#[test]
fn a_bad_record_is_rejected_alone_and_shown() {
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
fn a_node_that_is_gone_is_removed_by_an_operator_only() {
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
    // What it owned is collected when its quarantine is over.
    sim.advance(Duration::from_secs(3 * 900));
    let view = check::view(&sim);
    assert_eq!(view.cidrs().len(), 2);
    assert_eq!((view.endpoint_count(), view.identities().len()), (0, 0));
}

#[test]
fn a_block_without_endpoints_is_given_back() {
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
    // One of the first block goes too, so that no further block is wanted.
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

#[test]
fn an_identity_goes_when_its_last_endpoint_has_been_gone_for_a_while() {
    let mut sim = Sim::new(2, 20);
    sim.settle();
    let (_, identity) = added(sim.add(1, "a", "app=a"));
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    sim.advance(Duration::from_secs(30));
    assert_eq!(added(sim.add(1, "a2", "app=a")).1, identity, "within the grace nothing moves");
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a2"))), Ok(Reply::EndpointDeleted { existed: true }));
    sim.advance(Duration::from_secs(65));
    assert!(check::view(&sim).refs(identity).is_empty());
    sim.advance(Duration::from_secs(2 * 900));
    assert_eq!(check::view(&sim).identities().len(), 0);
}

#[test]
fn a_wiped_store_takes_nothing_away() {
    let mut sim = Sim::new(2, 21);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    added(sim.add(2, "b", "app=b"));
    let before: Vec<_> = sim.agents.iter().map(|agent| agent.kernel.tables().clone()).collect();
    sim.store = kvstore_store::MemState::new(kvstore_schema::StoreIdentity(2));
    sim.agents.iter_mut().for_each(support::Agent::relist);
    sim.settle();
    sim.advance(Duration::from_secs(700));
    for (agent, before) in sim.agents.iter().zip(before) {
        assert_eq!(*agent.kernel.tables(), before);
        let status = agent.node.as_ref().expect("it runs").status();
        assert!(
            status.warnings[0].starts_with("the store is not believed: the store was replaced"),
            "{status:#?}"
        );
    }
}

#[test]
fn a_node_that_changes_its_underlay_address_is_one_write_elsewhere() {
    let mut sim = Sim::new(2, 22);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    let moved: std::net::IpAddr = "192.0.2.77".parse().expect("an address");
    let index = *sim.node(2).wanted().nodes.keys().next().expect("one node");
    let event = node_core::Event::Underlay { addresses: vec![moved], mtu_bytes: 9000 };
    sim.agent(1).push(event);
    sim.agent(1).config.underlay = vec![moved];
    sim.settle();
    assert_eq!(sim.node(2).wanted().nodes[&index].underlay, moved);
    assert_eq!(sim.node(1).status().pod_mtu_bytes, 8950);
    assert_eq!(sim.agents[0].kernel.tables().base.as_ref().expect("a base").mtu_bytes, 8950);
    check::converged(&sim);
}

#[test]
fn endpoints_lost_in_a_reboot_leave_the_store_too() {
    let mut sim = Sim::new(2, 23);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    sim.agent(1).stop();
    sim.agent(1).kernel = datapath_plan::FakeDatapath::new();
    sim.restart(1);
    sim.settle();
    assert_eq!(check::view(&sim).endpoint_count(), 0);
    check::converged(&sim);
    added(sim.add(1, "a", "app=a"));
    check::converged(&sim);
}

#[test]
fn a_call_at_the_very_start_finds_what_a_former_agent_made() {
    for seed in 0..20 {
        let mut sim = Sim::new(2, seed);
        sim.settle();
        let first = added(sim.add(1, "a", "app=a"));
        sim.restart(1);
        match sim.add(1, "a", "app=a") {
            Ok(Reply::EndpointAdded { address, identity, existed: true, .. }) => {
                assert_eq!((address, identity), first)
            }
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}
