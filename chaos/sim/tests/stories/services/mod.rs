//! Services: from what is written to what every kernel has, and what a restart or an unreachable store leaves of it.

mod lifecycle;
mod restart;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use datapath_plan::{ServiceId, Tables};
use kvstore_schema::service::{ServicePort, ServiceProtocol, ServiceSpec};
use node_core::{Call, Expected, Reply, ServiceOutcome};

use chaos_sim::{Sim, added};

/// A service of one TCP port, whose backends listen on 8080.
pub fn selecting(labels: &str, port: u16) -> ServiceSpec {
    ServiceSpec {
        ports: vec![one(None, ServiceProtocol::Tcp, port, 8080)],
        selector: Some(identity::Selector {
            match_labels: labels.parse().expect("labels"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn one(name: Option<&str>, protocol: ServiceProtocol, port: u16, target: u16) -> ServicePort {
    ServicePort {
        name: name.map(str::to_owned),
        protocol,
        port,
        target_port: Some(target),
        node_port: None,
        host_port: None,
    }
}

pub fn put(sim: &mut Sim, n: usize, service: &str, spec: ServiceSpec) -> (ServiceOutcome, IpAddr) {
    let name = service.parse().expect("a name");
    match sim.ask(n, Call::ServicePut { name, spec, expected: Expected::Any }) {
        Ok(Reply::ServiceWritten { outcome, virtual_ip, .. }) => (outcome, virtual_ip),
        other => panic!("{other:?}"),
    }
}

pub fn delete(sim: &mut Sim, n: usize, service: &str) -> bool {
    let name = service.parse().expect("a name");
    match sim.ask(n, Call::ServiceDelete { name, expected: Expected::Any }) {
        Ok(Reply::ServiceDeleted { existed }) => existed,
        other => panic!("{other:?}"),
    }
}

/// The services in tables, without ids: each frontend with its backends and their weights.
fn meaning(tables: &Tables) -> BTreeMap<String, BTreeSet<String>> {
    let members = |service: ServiceId| {
        let members = tables.services[&service].members.iter().map(|id| {
            let backend = &tables.backends[id];
            assert_eq!(backend.service, service, "a member of another service");
            format!("{}:{} {}", backend.address, backend.port, backend.weight)
        });
        members.collect()
    };
    let frontends = tables.frontends.iter().map(|(frontend, value)| {
        (
            format!("{}:{} {}", frontend.address, frontend.port, frontend.protocol.word()),
            members(value.service),
        )
    });
    let meaning: BTreeMap<String, BTreeSet<String>> = frontends.collect();
    let used: usize = tables.services.values().map(|service| service.members.len()).sum();
    assert_eq!(
        (tables.services.len(), tables.backends.len()),
        (meaning.len(), used),
        "something is left over"
    );
    meaning
}

/// The services in every kernel; all kernels must agree.
fn served(sim: &Sim) -> BTreeMap<String, BTreeSet<String>> {
    let all: Vec<_> = sim.agents.iter().map(|agent| meaning(agent.kernel.tables())).collect();
    for (n, other) in all.iter().enumerate() {
        assert_eq!(*other, all[0], "n{} and n1 differ", n + 1);
    }
    all[0].clone()
}

fn expect<const N: usize>(sim: &Sim, frontends: [(String, Vec<String>); N]) {
    let frontends =
        frontends.into_iter().map(|(frontend, members)| (frontend, members.into_iter().collect()));
    assert_eq!(served(sim), frontends.collect());
}

fn fleet(seed: u64) -> (Sim, Vec<IpAddr>) {
    let mut sim = Sim::new(3, seed);
    sim.settle();
    let web = [(1, "a"), (2, "b")].map(|(n, name)| added(sim.add(n, name, "app=web")).0);
    added(sim.add(3, "c", "app=db"));
    (sim, web.to_vec())
}

fn at(address: IpAddr) -> String {
    format!("{address}:8080 1")
}
