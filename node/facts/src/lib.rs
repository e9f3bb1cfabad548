//! What nodes publish by gossip: typed facts and their codec.
//!
//! Facts are claims of a fleet member about itself: gossip's key proves membership, not identity, so readers check
//! them against what etcd has confirmed.
//!
//! Invariant: pure. `node-gossip` carries these values over the network, `node-core` decides on them; neither knows
//! the other.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod codec;
mod facts;
mod unwell;

pub use codec::{
    Decoded, FACTS_KEY, FACTS_VERSION, FactsError, MAX_PENDING_CHUNKS, MAX_VALUE_BYTES, PENDING_CHUNK_BYTES,
    RejectedValue, decode, encode, pending_key,
};
pub use facts::{
    CidrFact, InvalidFacts, Liveness, MAX_CIDRS, MAX_FLEET_ID_BYTES, MAX_REASON_BYTES, MAX_UNDERLAY,
    MAX_UNWELL, MAX_WHY_BYTES, NodeFacts, NodeHealth, PendingEndpoint, PendingOp, Unwell,
};
pub use unwell::UNWELL_KEY;
