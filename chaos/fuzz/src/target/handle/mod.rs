//! A node with arbitrary sequences of events.
//!
//! Events and their values are drawn from the input, byte by byte. The node's own shell behaves correctly (a plan is
//! answered once, the kernel is observed on request, an answer has its request's number); everything else is
//! arbitrary: etcd's answers and content, what peers gossip, what the kernel holds, what callers want.

mod value;
mod world;

use chaos_sim::config;
use node_core::NodeConfig;

use super::Target;
use crate::draw::Draw;
use world::World;

/// Events handled for one input: longer histories find nothing more, and hide what they found.
const MAX_STEPS: usize = 200;

/// Even first byte: in the end the world behaves correctly, and the kernel must have the desired state. Odd:
/// everything stays arbitrary.
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
    // Two endpoints are added and one is deleted, while every request is answered; then the same among random events.
    let quiet = [&[17, 0, 1][..], &[0; 40], &[17, 1, 1], &[0; 40], &[17, 64, 1], &[0; 40]].concat();
    let random = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..600).map(|_| rng.u8(..)).collect::<Vec<u8>>()
    };
    [vec![[&[0][..], &quiet].concat()], (0..8).map(random).collect()].concat()
}
