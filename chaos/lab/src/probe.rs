//! Probes: is the other side there, and does it get what was sent?
//!
//! Some are over when their function returns ([`ping`], [`transfer`], [`send_datagram`]). The others run beside
//! whatever is done to the fleet: [`Ping`], [`Datagrams`], [`Streams`] and [`Connections`] are settings; `start`
//! gives a [`Running`] probe, and [`Running::stop`] the [`Report`] of what went wrong, when, and for how long.
//! A probe costs one thread. None of them speaks to an agent.

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
