//! Stories of a store that is emptied, restored or replaced under a fleet that runs: nothing leaves a kernel, nobody is
//! started again, and the records are whole afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use datapath_plan::Tables;
use identity::Identity;
use kvstore_claims::FleetView;
use kvstore_schema::{
    Key, KvOp, Revision, StoreIdentity, Txn,
    record::FleetRecord,
    service::{ServiceSpec, VirtualIp},
};
use kvstore_store::MemState;
use node_core::{Call, EndpointView, Expected, Node, NodeConfig, Reply};

use chaos_sim::{Agent, Sim, added, check, config, name};

/// Beyond the time in which a fleet has made its store whole.
const WHOLE: Duration = Duration::from_secs(180);

/// Three nodes with two endpoints each, and a user's manifests.
fn fleet(seed: u64) -> Sim {
    let mut sim = Sim::new(3, seed);
    sim.settle();
    for n in 1..=3 {
        added(sim.add(n, "web", "app=web"));
        added(sim.add(n, "own", &format!("app=own{n}")));
    }
    let guard = Key::from_raw(format!("{}policies/guard", sim.schema().root()));
    put(&mut sim.store, guard, b"the user's".as_slice().into());
    for service in ["shop", "mart"] {
        serve(&mut sim, service, VirtualIp::Auto);
    }
    sim.settle();
    sim.advance(Duration::from_secs(10));
    sim
}

/// Writes a service; its address.
fn serve(sim: &mut Sim, service: &str, virtual_ip: VirtualIp) -> IpAddr {
    let spec = r#"{"ports":[{"port":80}],"selector":{"matchLabels":{"app":"web"}}}"#;
    let spec = ServiceSpec { virtual_ip, ..serde_json::from_str(spec).expect("a spec") };
    let name = service.parse().expect("a name");
    match sim.ask(1, Call::ServicePut { name, spec, expected: Expected::Any }) {
        Ok(Reply::ServiceWritten { virtual_ip, .. }) => virtual_ip,
        other => panic!("{other:?}"),
    }
}

fn put(store: &mut MemState, key: Key, value: std::sync::Arc<[u8]>) {
    store.txn(&Txn::new().then(KvOp::Put { key, value, lease: None })).expect("a put");
}

/// What the store says, without revisions, and without what an agent writes anew at each start.
fn content(view: &FleetView) -> Vec<String> {
    let nodes = view.nodes().iter().map(|(node, e)| format!("{node} {:?}", e.record.underlay));
    let cidrs = view.cidrs().iter().map(|(cidr, e)| format!("{cidr} {} {:?}", e.record.node, e.record.state));
    let labels = view.identity_labels().values().map(|e| format!("{} {}", e.record.labels, e.record.id));
    let numbers =
        view.identities().iter().map(|(id, e)| format!("{id} {} {:?}", e.record.labels, e.record.state));
    let refs = view.refs_by_node().iter().map(|(node, ids)| format!("{node} {ids:?}"));
    let endpoints = view.endpoints().iter().flat_map(|(node, ips)| {
        ips.iter().map(move |(ip, e)| {
            format!("{node} {ip} {} {} {}", e.record.name, e.record.identity, e.record.labels)
        })
    });
    let policies = view.policies().iter().map(|(name, e)| format!("{name} {:?}", e.record));
    let services = view.services().iter().map(|(name, e)| format!("{name} {:?}", e.record));
    let claims = view.service_claims().iter().map(|(claim, e)| format!("{claim} {}", e.record.service));
    let users = policies.chain(services).chain(claims);
    nodes.chain(cidrs).chain(labels).chain(numbers).chain(refs).chain(endpoints).chain(users).collect()
}

fn kernels(sim: &Sim) -> Vec<Tables> {
    sim.agents.iter().map(|agent| agent.kernel.tables().clone()).collect()
}

/// Lets the fleet go on, and looks after each step: every entry of before is there, unchanged.
fn nothing_leaves(sim: &mut Sim, before: &[Tables], time: Duration) {
    let end = sim.now + time;
    loop {
        while sim.step().unwrap_or_else(|violation| panic!("{violation}")) {
            for (agent, before) in sim.agents.iter().zip(before) {
                let now = agent.kernel.tables();
                let me = &agent.config.node;
                for (prefix, value) in &before.ipcache {
                    assert_eq!(now.ipcache.get(prefix), Some(value), "{me}: {prefix}");
                }
                assert!(before.nodes.iter().all(|(index, node)| now.nodes.get(index) == Some(node)), "{me}");
                assert!(before.routes.keys().all(|cidr| now.routes.contains_key(cidr)), "{me}");
                assert!(before.endpoints.keys().all(|id| now.endpoints.contains_key(id)), "{me}");
            }
        }
        if sim.now >= end {
            return;
        }
        sim.advance(Duration::from_millis(500));
    }
}

fn is_whole(sim: &Sim, before: &[String]) {
    let view = check::view(sim);
    assert_eq!(content(&view), before);
    assert!(!view.life().restoring, "settled");
    for agent in sim.agents.iter().filter(|agent| agent.node.is_some()) {
        let status = agent.node.as_ref().expect("it runs").status();
        assert_eq!((status.warnings, status.halted), (Vec::new(), None), "{}", agent.config.node);
        assert!(view.alive().contains_key(&agent.config.node), "its sign of life");
    }
    check::converged(sim);
}

fn relist(sim: &mut Sim) {
    sim.agents.iter_mut().for_each(Agent::relist);
}

fn empty(sim: &mut Sim, cluster: u64) {
    sim.store = MemState::new(StoreIdentity(cluster));
    relist(sim);
}

fn delete_all(sim: &mut Sim) {
    let page = sim.store.list(&sim.schema().root(), None, None, usize::MAX).expect("now");
    let all = page.entries.iter().fold(Txn::new(), |txn, kv| txn.then(KvOp::Delete(kv.key.clone())));
    sim.store.txn(&all).expect("deletes");
}

#[test]
fn an_emptied_store_is_written_again_while_everything_runs() {
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
fn a_prefix_that_is_deleted_is_written_again() {
    for seed in 70..75 {
        let mut sim = fleet(seed);
        let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
        delete_all(&mut sim);
        nothing_leaves(&mut sim, &before, WHOLE);
        is_whole(&sim, &stored);
    }
}

#[test]
fn twice_is_as_good_as_once() {
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

/// An old copy in which nearly everything is different.
fn restored(seed: u64, cluster: Option<u64>) -> (Sim, Vec<Tables>, Vec<String>) {
    let mut sim = fleet(seed);
    let mut copy = sim.store.clone();
    for n in 1..=2 {
        let old = sim.ask(n, Call::EndpointDelete(name("own")));
        assert_eq!(old, Ok(Reply::EndpointDeleted { existed: true }));
        added(sim.add(n, "new", &format!("app=new{n}")));
    }
    sim.join(config(4));
    sim.settle();
    added(sim.add(4, "web", "app=web"));
    // Long enough for what was released to be collected.
    sim.advance(config(1).quarantine * 3);
    // One service goes, another has its address since; a third one has moved.
    let shop = sim.node(1).services()[1].record.virtual_ip;
    let gone = Call::ServiceDelete { name: "shop".parse().expect("a name"), expected: Expected::Any };
    assert_eq!(sim.ask(1, gone), Ok(Reply::ServiceDeleted { existed: true }));
    serve(&mut sim, "stall", VirtualIp::Address(shop));
    serve(&mut sim, "mart", VirtualIp::Address("10.201.7.7".parse().expect("an address")));
    sim.settle();
    let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
    if let Some(cluster) = cluster {
        let mut other = MemState::new(StoreIdentity(cluster));
        std::mem::swap(&mut other, &mut copy);
        sim.store = copy;
        sim.store.restore(other);
    } else {
        sim.store.restore(copy);
    }
    relist(&mut sim);
    (sim, before, stored)
}

#[test]
fn an_old_copy_is_brought_up_to_date() {
    for seed in 80..85 {
        for cluster in [None, Some(9)] {
            let (mut sim, before, stored) = restored(seed, cluster);
            nothing_leaves(&mut sim, &before, WHOLE);
            check::converged(&sim);
            // Label sets of then that nobody uses now are collected as any others.
            sim.advance(config(1).quarantine * 3);
            is_whole(&sim, &stored);
        }
    }
}

/// All agents were away when it happened: they know what their snapshots tell.
#[test]
fn a_fleet_that_starts_beside_a_store_that_was_lost_makes_it_whole() {
    for seed in 170..176 {
        let mut sim = fleet(seed);
        let copy = sim.store.clone();
        added(sim.add(3, "new", "app=new"));
        sim.advance(Duration::from_secs(30));
        // Policies are in no snapshot.
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

/// A copy under the same cluster id, written to by others until its revision has passed what the nodes know.
#[test]
fn a_copy_whose_revision_has_passed_is_known_by_its_mark() {
    for seed in 140..150 {
        for reconnect in [Agent::relist, Agent::break_watch] {
            let mut sim = fleet(seed);
            let copy = sim.store.clone();
            // Nothing but what is new: in the copy it is as if deleted.
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

#[test]
fn a_watch_that_breaks_and_goes_on_is_no_loss() {
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

/// A copy of the time when `app=own1` had another number; it was collected since, and the label set has a new one on two
/// nodes.
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
fn a_label_set_keeps_the_number_that_it_has_whatever_an_old_copy_says() {
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

/// Somebody who knows nothing else has taken the copy's number: the others, who find that, take it too.
#[test]
fn a_number_of_a_copy_that_somebody_uses_by_now_is_taken_by_all() {
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
fn what_an_absent_node_owns_is_written_by_others_and_waits_for_it() {
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
        // One that stays away is removed by an operator, as ever.
        sim.halt(3);
        sim.advance(Duration::from_secs(40));
        assert_eq!(sim.ask(1, Call::NodeRemove(config(3).node)), Ok(Reply::NodeRemoved));
        sim.advance(config(1).quarantine * 3);
        assert!(sim.node(1).nodes().iter().all(|node| node.name != config(3).node));
    }
}

#[test]
fn a_half_that_is_cut_off_finds_its_records_when_it_comes_back() {
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
            // Recorded at a revision that the half which is cut off has long seen, in another life.
            sim.agents[0].store_up = false;
            let (address, identity) = added(sim.add(1, "other", "app=web"));
            sim.agents[0].store_up = true;
            sim.advance(Duration::from_secs(10));
            let known =
                sim.agents[2].kernel.tables().ipcache.get(&address.into()).map(|entry| entry.identity);
            assert_eq!(known, Some(identity));
        }
        // What it does meanwhile is recorded later.
        added(sim.add(3, "alone", "app=web"));
        sim.agents[2].store_up = true;
        sim.gossip = true;
        nothing_leaves(&mut sim, &before, WHOLE);
        check::converged(&sim);
        assert_eq!(content(&check::view(&sim)).len(), stored.len() + 1 + usize::from(gossip));
    }
}

#[test]
fn a_node_that_starts_beside_an_emptied_store_waits_for_those_who_know_the_fleet() {
    let mut sim = fleet(94);
    let (before, fleet_id) = (kernels(&sim), sim.node(1).status().fleet_id);
    sim.agents.iter_mut().for_each(|agent| agent.store_up = false);
    sim.settle();
    empty(&mut sim, 2);
    // Gossip tells it that there is a fleet.
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
fn a_node_that_remembers_little_removes_nothing_until_the_others_have_spoken() {
    for seed in 135..140 {
        let mut sim = fleet(seed);
        let before = kernels(&sim);
        let stored = content(&check::view(&sim));
        // The machine dies with a snapshot of before the others came; its kernel has outlived it.
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
fn a_member_that_missed_one_life_may_found_the_next() {
    for seed in 130..135 {
        let mut sim = fleet(seed);
        let (before, stored) = (kernels(&sim), content(&check::view(&sim)));
        sim.agents[2].store_up = false;
        sim.settle();
        empty(&mut sim, 2);
        nothing_leaves(&mut sim, &before, WHOLE);
        // It founds its first one, which is the others' second.
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

#[test]
fn nothing_is_written_into_another_fleets_store() {
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
    // The operator puts it right.
    std::mem::swap(&mut sim.store, &mut former);
    relist(&mut sim);
    nothing_leaves(&mut sim, &before, WHOLE);
    is_whole(&sim, &stored);
}

#[test]
fn a_block_that_moved_since_the_copy_goes_to_its_later_owner() {
    // Room for two blocks: the third node gets the one that was the second one's.
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
        // The later owner has claimed it again when the former one comes back.
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
fn a_fleet_of_another_life_is_told_from_the_one_that_is_known() {
    // A copy of a former life is older, whatever its revision says.
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
