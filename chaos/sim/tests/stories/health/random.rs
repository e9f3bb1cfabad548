//! Random histories of backends.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use datapath_plan::BackendState::{self, Active, Terminating, Unhealthy};
use kvstore_schema::service::{FixedBackend, ServiceSpec};
use node_core::{Call, Expected};

use super::{SECOND, checked, kernel, put, wanted, web};
use chaos_sim::{Sim, check, name, spec};

/// Random events that affect backends. At the end, every node with power is reachable.
struct Trouble {
    sim: Sim,
    rng: fastrand::Rng,
    outside: Vec<IpAddr>,
}

impl Trouble {
    const NODES: usize = 4;

    fn new(seed: u64) -> Self {
        let mut sim = Sim::new(Self::NODES as u8, seed);
        sim.rounds = true;
        sim.advance(15 * SECOND);
        put(&mut sim, 1, checked(web()));
        let outside: Vec<IpAddr> = (1..=3).map(|last| [198, 51, 100, last].into()).collect();
        let backends =
            outside.iter().map(|address| FixedBackend { address: *address, port: None, weight: 1 }).collect();
        let fixed = ServiceSpec { selector: None, backends, ..checked(web()) };
        let put =
            Call::ServicePut { name: "fixed".parse().expect("a name"), spec: fixed, expected: Expected::Any };
        sim.ask(2, put).expect("written");
        Self { sim, rng: fastrand::Rng::with_seed(seed), outside }
    }

    fn act(&mut self) {
        let Self { sim, rng, outside } = self;
        let n = rng.usize(1..=Self::NODES);
        let runs = sim.agents[n - 1].node.is_some();
        let endpoint = name(&format!("e{}", rng.u8(0..3)));
        let mut known: Vec<IpAddr> = outside.clone();
        let kernels = sim.agents.iter().flat_map(|agent| agent.kernel.tables().endpoints.values());
        known.extend(kernels.map(|endpoint| endpoint.address));
        match rng.u8(0..20) {
            0..4 if runs => drop(sim.call(n, Call::EndpointAdd(spec(endpoint.as_str(), "app=web")))),
            4 if runs => drop(sim.call(n, Call::EndpointDelete(endpoint))),
            5 | 6 if runs => drop(sim.call(n, Call::EndpointDrain(endpoint))),
            7..11 => {
                let one = *rng.choice(&known).expect("those outside");
                if !sim.sick.remove(&one) {
                    sim.sick.insert(one);
                }
            }
            11 => sim.halt(n),
            12 | 13 => sim.restart(n),
            // A node without any live peer reports nobody dead: one node at a time.
            14 if sim.dark.is_empty() => sim.power_off(n),
            15 => sim.store_away(),
            16 => sim.store_back(),
            17 => {
                let other = rng.usize(0..Self::NODES);
                sim.links.link(n - 1, other).up = false;
            }
            18 => sim.links.heal(),
            _ => {}
        }
        let by = Duration::from_millis(rng.u64(0..4_000));
        self.sim.advance(by);
    }

    fn end(&mut self) {
        let Self { sim, .. } = self;
        sim.links.heal();
        sim.store_back();
        for n in 1..=Self::NODES {
            if sim.agents[n - 1].node.is_none() && !sim.dark.contains(&n) {
                sim.restart(n);
            }
        }
        sim.advance(60 * SECOND);
    }

    /// What every kernel should have of the fleet's services.
    fn expected(&self) -> BTreeMap<IpAddr, (BackendState, bool)> {
        let sim = &self.sim;
        let dark =
            |node: &identity::NodeName| sim.dark.iter().any(|n| sim.agents[n - 1].config.node == *node);
        let sick = |ip: &IpAddr| if sim.sick.contains(ip) { Unhealthy } else { Active };
        let view = check::view(sim);
        let endpoints = view.endpoints().iter().flat_map(|(node, records)| {
            records.iter().map(move |(ip, entry)| match entry.record.terminating {
                true => (*ip, Terminating),
                false if dark(node) => (*ip, Unhealthy),
                false => (*ip, sick(ip)),
            })
        });
        let mut expected = wanted(endpoints.collect());
        expected.extend(wanted(self.outside.iter().map(|ip| (*ip, sick(ip))).collect()));
        expected
    }
}

#[test]
fn health_states_converge_after_random_histories() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut trouble = Trouble::new(seed);
        for _ in 0..60 {
            trouble.act();
        }
        trouble.end();
        let expected = trouble.expected();
        for n in (1..=Trouble::NODES).filter(|n| !trouble.sim.dark.contains(n)) {
            assert_eq!(kernel(&trouble.sim, n), expected, "n{n}");
        }
    }
}
