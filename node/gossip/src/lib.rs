//! The only crate that names chitchat: typed facts over an authenticated, encrypted transport.
//!
//! Gossip carries what must move while etcd cannot: each node's [`NodeFacts`] and who seems alive. It
//! never deletes anything, decides nothing, and hands chitchat not one byte that a member did not seal.

mod adapter;
mod config;
mod error;
mod event;
mod gossip;
mod inbox;
pub mod keyring;
mod refusal;
mod relay;
pub mod replay;
mod stats;
mod supervisor;
mod table;
mod transport;
pub mod wire;

pub use config::{DEFAULT_INTERVAL, GossipConfig, MAX_INTERVAL, MIN_INTERVAL};
pub use error::{GossipError, PublishError};
pub use event::GossipEvent;
pub use gossip::Gossip;
pub use keyring::{GossipKey, KeyId, Keyring, KeyringError};
pub use node_facts::NodeFacts;
pub use refusal::Refusal;
pub use stats::GossipStats;
pub use table::PeerStatus;
