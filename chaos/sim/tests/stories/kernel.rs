//! The kernel: restarts that change nothing, damage that is found and repaired.

use std::time::Duration;

use datapath_plan::TableKey;
use ipnetwork::IpNetwork;
use node_core::{Call, Reply};

use chaos_sim::{Sim, added, check, config, name};

#[test]
fn restart_changes_nothing_in_the_kernel() {
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
    // The state is complete: the node deletes what the previous agent created.
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    check::converged(&sim);
}

#[test]
fn restart_without_the_store_keeps_everything() {
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
fn audit_shows_damage_and_repairs_it_on_request() {
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
fn audit_repairs_damage_within_its_interval() {
    let mut sim = Sim::new(2, 9);
    sim.settle();
    let (address, _) = added(sim.add(2, "web", "app=web"));
    sim.agent(1).kernel.damage(&TableKey::Ipcache(IpNetwork::from(address)));
    sim.advance(config(1).audit_interval * 2);
    check::converged(&sim);
}

#[test]
fn external_modification_is_repaired_at_once_without_a_loop() {
    let mut sim = Sim::new(2, 9);
    sim.settle();
    let (address, _) = added(sim.add(2, "web", "app=web"));
    let route = *sim.node(1).wanted().routes.keys().next().expect("a route");
    sim.advance(Duration::from_secs(2));
    let audits = |sim: &Sim| sim.node(1).counters().audits;
    let before = audits(&sim);
    let disturb = |sim: &mut Sim, keys: &[TableKey]| {
        keys.iter().for_each(|key| sim.agent(1).kernel.damage(key));
        sim.agent(1).push(node_core::Event::ExternallyModified(keys.iter().copied().collect()));
        sim.settle();
    };
    disturb(&mut sim, &[TableKey::Route(route)]);
    assert_eq!(audits(&sim), before + 1);
    check::converged(&sim);

    // Repeated external modification: one observation a second.
    for _ in 0..20 {
        disturb(&mut sim, &[TableKey::Route(route)]);
        sim.advance(Duration::from_millis(100));
    }
    assert!((2..=4).contains(&(audits(&sim) - before)), "{}", audits(&sim) - before);
    sim.advance(Duration::from_secs(2));
    check::converged(&sim);

    // Unwanted entries may go.
    let before = audits(&sim);
    disturb(&mut sim, &[TableKey::Route("10.99.0.0/24".parse().expect("a prefix"))]);
    sim.advance(Duration::from_secs(2));
    assert_eq!(audits(&sim), before);
    let web = TableKey::Ipcache(IpNetwork::from(address));
    disturb(&mut sim, &[web]);
    assert_eq!(audits(&sim), before + 1);
    check::converged(&sim);
}

#[test]
fn endpoints_lost_in_a_reboot_are_removed_from_the_store() {
    let mut sim = Sim::new(2, 23);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    sim.reboot(1);
    sim.settle();
    assert_eq!(check::view(&sim).endpoint_count(), 0);
    check::converged(&sim);
    added(sim.add(1, "a", "app=a"));
    check::converged(&sim);
}

#[test]
fn call_during_start_finds_endpoints_of_the_previous_agent() {
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
