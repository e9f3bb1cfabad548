//! The targets: one function over bytes for each decoder.

mod agent;
mod api;
mod gossip;
mod handle;
mod kernel;
mod label;
mod sample;
mod store;

/// One decoder, or a function that stands for it.
pub struct Target {
    /// The name in `make fuzz TARGET=`, and of the corpus directory.
    pub name: &'static str,
    /// Panics when something is wrong. The bytes may come from anywhere.
    pub run: fn(&[u8]),
    /// Real inputs, encoded by the current code: where mutation begins.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Tokens of the target's language.
    pub words: &'static [&'static str],
    /// Mutations of the short run: as many as take about a second in a debug build.
    pub rounds: u32,
}

/// All targets, by name.
pub const TARGETS: &[Target] = &[
    api::API,
    agent::CONFIG,
    agent::ENDPOINT_FILE,
    kernel::EVENT,
    gossip::FACTS,
    gossip::GOSSIP,
    handle::HANDLE,
    kernel::KERNEL_VALUES,
    gossip::KEY_FILE,
    label::LABEL,
    api::MANIFEST,
    kernel::NETLINK,
    kernel::PACKET,
    store::RECORD_KEY,
    store::RECORD_VALUE,
    agent::SNAPSHOT,
    kernel::SOCKETS,
    store::STORE_FILE,
];

/// The target with a name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
