//! Observability: decoding and filtering of flow events, the meanings of drop reasons, and the schema of metrics.
//!
//! Invariant: pure. The agent adds what only it knows to events (labels, endpoints). Agent and command line share the filters and
//! the texts.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod event;
mod filter;
pub mod metric;
mod reason;

pub use event::{BootTime, DecodeError, EventKind, FlowEvent, Party, Protocol, Verdict, tcp_flags};
pub use filter::{EventFilter, FilterError, PartyFilter};
pub use reason::{Advice, advice, advice_for_key};
