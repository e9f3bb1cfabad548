//! A node under arbitrary sequences of events.
//!
//! The input is drawn from, byte by byte: what happens next, and with which values. The node's own shell keeps its
//! word (a plan is answered once, the kernel is read when asked for, an answer has its question's number); all else
//! may be anything: what etcd says and holds, what peers gossip, what the kernel holds, what callers want.

mod value;
mod world;

use chaos_sim::config;
use node_core::NodeConfig;

use super::Target;
use crate::draw::Draw;
use world::World;

/// Events handled for one input: longer histories find nothing more, and hide what they found.
const MAX_STEPS: usize = 200;

/// Even first byte: the world is honest in the end, and the kernel is as wanted then. Odd: anything goes.
pub const HANDLE: Target = Target { name: "handle", run, seeds, words: &[], rounds: 400 };

/// Node `n1` of the fleet `test`, with blocks and pauses so small that they matter.
pub fn node_config() -> NodeConfig {
    NodeConfig { pools: vec![super::sample::network("10.0.0.0/24")], block_prefix_v4: 28, ..config(1) }
}

fn run(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let hostile = draw.bool();
    let mut world = World::new(hostile);
    for _ in 0..MAX_STEPS {
        if draw.is_empty() {
            break;
        }
        world.step(&mut draw);
    }
    if !hostile {
        world.heal();
        world.settle();
        world.check();
    }
}

fn seeds() -> Vec<Vec<u8>> {
    // Two endpoints come and one goes, while everything answers; then the same among random events.
    let quiet = [&[17, 0, 1][..], &[0; 40], &[17, 1, 1], &[0; 40], &[17, 64, 1], &[0; 40]].concat();
    let random = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..600).map(|_| rng.u8(..)).collect::<Vec<u8>>()
    };
    [vec![[&[0][..], &quiet].concat()], (0..8).map(random).collect()].concat()
}
