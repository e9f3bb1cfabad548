//! A store that is wiped, restored or replaced under a running fleet: no kernel entry leaves, no agent is restarted,
//! and the records are complete afterwards.

mod backup;
mod members;
mod wipe;

use std::{net::IpAddr, time::Duration};

use datapath_plan::Tables;
use kvstore_claims::FleetView;
use kvstore_schema::{
    Key, KvOp, StoreIdentity, Txn,
    service::{ServiceSpec, VirtualIp},
};
use kvstore_store::MemState;
use node_core::{Call, Expected, Reply};

use chaos_sim::{Agent, Sim, added, check, config, name};

/// Longer than a fleet needs to restore its store.
const WHOLE: Duration = Duration::from_secs(180);

/// Three nodes with two endpoints each, and manifests of users.
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

/// Writes a service; returns its address.
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

/// The content of the store, without revisions, and without what an agent writes at each start.
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

/// Lets the fleet run, and checks after each step that every entry of before still exists, unchanged.
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
    let view = sim.store_view();
    assert_eq!(content(&view), before);
    assert!(!view.life().restoring, "settled");
    for agent in sim.agents.iter().filter(|agent| agent.node.is_some()) {
        let status = agent.node.as_ref().expect("it runs").status();
        assert_eq!((status.warnings, status.halted), (Vec::new(), None), "{}", agent.config.node);
        assert!(view.alive().contains_key(&agent.config.node), "its liveness key");
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

/// An old backup in which nearly everything differs.
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
    // Long enough for released records to be collected.
    sim.advance(config(1).quarantine * 3);
    // One service is deleted, another one has its address since; a third one has moved.
    let shop = sim.node(1).services()[1].record.virtual_ip;
    let gone = Call::ServiceDelete { name: "shop".parse().expect("a name"), expected: Expected::Any };
    assert_eq!(sim.ask(1, gone), Ok(Reply::ServiceDeleted { existed: true }));
    serve(&mut sim, "stall", VirtualIp::Address(shop));
    serve(&mut sim, "mart", VirtualIp::Address("10.201.7.7".parse().expect("an address")));
    sim.settle();
    let (before, stored) = (kernels(&sim), content(&sim.store_view()));
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
