//! What a node shows of itself: flow events decoded, filters on them, what each drop reason means, and the
//! names of all metrics.
//!
//! Invariant: pure. The agent adds the names that only it knows (labels, endpoints); the command line uses
//! the same filters and the same words.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod event;
mod filter;
pub mod metric;
mod reason;

pub use event::{BootTime, DecodeError, EventKind, FlowEvent, Party, Protocol, Verdict, tcp_flags};
pub use filter::{EventFilter, FilterError, PartyFilter};
pub use reason::{Advice, advice, advice_for_key};
