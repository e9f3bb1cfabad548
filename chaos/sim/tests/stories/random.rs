//! Any history: a fleet under random calls, faults and restarts; P3 after every step, convergence at the end.
//!
//! A failure prints its seed; `WARREN_SEED=n cargo test -p chaos-sim --test stories` runs that one alone.

use std::{ops::Range, time::Duration};

use chaos_sim::{Sim, check, config, name, spec};
use datapath_plan::{OpErrorKind, TableKey};
use node_core::Call;

const NODES: u8 = 4;
const STEPS: usize = 120;

fn history(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut configs: Vec<_> = (1..=NODES).map(config).collect();
    // Small blocks and pools, so that they fill; short rests, so that things come back.
    configs.iter_mut().for_each(|config| {
        config.pools = vec!["10.0.0.0/24".parse().expect("a pool")];
        config.block_prefix_v4 = 29;
        config.quarantine = Duration::from_secs(120);
        config.address_cooldown = Duration::from_secs(20);
    });
    let mut sim = Sim::with(seed, configs);
    let mut failing = Vec::new();
    for _ in 0..STEPS {
        let n = rng.usize(1..=usize::from(NODES));
        let running = sim.agents[n - 1].node.is_some();
        let endpoint = format!("e{}", rng.u8(0..8));
        match rng.u8(0..28) {
            0..8 if running => {
                let labels = format!("app=a{}", rng.u8(0..4));
                sim.call(n, Call::EndpointAdd(spec(&endpoint, &labels)));
            }
            8..12 if running => drop(sim.call(n, Call::EndpointDelete(name(&endpoint)))),
            12 => sim.agent(n).store_up = false,
            13..15 => sim.agents.iter_mut().for_each(|agent| agent.store_up = true),
            15 => sim.restart(n),
            16 => sim.agent(n).stop(),
            17 => sim.gossip = rng.bool(),
            18 => {
                let keys: Vec<TableKey> = sim.agents[n - 1].kernel.tables().keys().into_iter().collect();
                // Without its attachment an endpoint cannot be made again: nothing that heals by itself.
                let keys: Vec<_> = keys.iter().filter(|key| !matches!(key, TableKey::Endpoint(_))).collect();
                if let Some(key) = rng.choice(&keys) {
                    sim.agent(n).kernel.damage(key);
                }
            }
            19 => {
                let key = TableKey::Endpoint(datapath_plan::EndpointId(rng.u32(1..20)));
                failing.push((n, key));
                sim.agent(n).kernel.fail(key, OpErrorKind::Transient);
            }
            20 if running => drop(sim.call(n, Call::Audit { repair: rng.bool() })),
            21 => sim.agent(n).relist(),
            22 => {
                sim.agent(n).stop();
                sim.agent(n).kernel = datapath_plan::FakeDatapath::new();
                sim.restart(n);
            }
            23 => {
                sim.agent(n).store_up = false;
                sim.restart(n);
            }
            24 => sim.agent(n).disk = None,
            25 => sim.agent(n).reload(),
            _ => sim.advance(Duration::from_millis(rng.u64(1..40_000))),
        }
        if rng.u8(0..3) > 0 {
            sim.settle();
        }
    }
    // Everything heals.
    sim.gossip = true;
    sim.agents.iter_mut().for_each(|agent| agent.store_up = true);
    for (n, key) in failing {
        sim.agent(n).kernel.heal(&key);
    }
    for n in 1..=usize::from(NODES) {
        if sim.agents[n - 1].node.is_none() {
            sim.restart(n);
        }
    }
    sim.settle();
    sim.advance(Duration::from_secs(1_000));
    check::converged(&sim);
    // A restart of all of them changes nothing.
    let before: Vec<_> = sim.agents.iter().map(|agent| agent.kernel.steps()).collect();
    for n in 1..=usize::from(NODES) {
        sim.restart(n);
    }
    sim.settle();
    sim.advance(Duration::from_secs(60));
    check::converged(&sim);
    let after: Vec<_> = sim.agents.iter().map(|agent| agent.kernel.steps()).collect();
    assert_eq!(before, after, "a restart changed something");
}

fn run(seeds: Range<u64>) {
    let only = std::env::var("WARREN_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(seeds, |seed| seed..seed + 1) {
        let result = std::panic::catch_unwind(|| history(seed));
        assert!(
            result.is_ok(),
            "seed {seed} failed: WARREN_SEED={seed} cargo test -p chaos-sim --test stories"
        );
    }
}

#[test]
fn any_history_converges() {
    run(0..40);
}
