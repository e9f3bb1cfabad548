//! Probes: traffic that shows whether the other side is reachable, and receives what was sent.
//!
//! Some end when their function returns ([`ping`], [`transfer`], [`send_datagram`]). The others run during faults:
//! [`Ping`], [`Datagrams`], [`Streams`] and [`Connections`] are settings; `start` returns a [`Running`] probe, and
//! [`Running::stop`] the [`Report`] of what went wrong, when, and for how long. A probe costs one thread. No probe
//! speaks to an agent.

mod connections;
mod datagrams;
mod once;
mod pattern;
mod ping;
mod report;
mod running;
mod sequence;
mod streams;

pub use connections::Connections;
pub use datagrams::Datagrams;
pub use once::{Transfer, ping, send_datagram, transfer};
pub use ping::Ping;
pub use report::{Cause, Report, Spread, Trouble};
pub use running::Running;
pub use streams::Streams;
