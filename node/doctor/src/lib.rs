//! Looks a node over: what would keep Warren from working here, and what to type about it (`warren doctor`).
//!
//! Facts are gathered in `gather` (files of the kernel and of other programs, the clock, the agent's API) and
//! judged in `check`, in pure functions `facts -> Finding`. Nothing is ever changed, no packets leave the node but
//! a few pings to other nodes through the overlay, and what cannot be learnt is [`Verdict::Unknown`], never a
//! guess.

mod check;
mod finding;
mod gather;

use std::path::Path;

pub use check::FULL_MAP_PERCENT;
pub use finding::{Counts, Finding, Report, Verdict};
use node_api::Client;

/// Where the tunnel is unless the fleet says otherwise; only asked for while there is no agent to tell.
pub const DEFAULT_TUNNEL_PORT: u16 = 8472;

/// Runs every check once, in a fixed order. Repeating it is safe.
///
/// Without an agent the machine's checks still run, and the agent's are unknown. `tunnel_port` is the UDP port
/// that the fleet's tunnel uses, or will use.
pub async fn examine(client: &Client, tunnel_port: u16) -> Report {
    let agent = gather::agent(client).await;
    let machine = gather::machine(Path::new("/"));
    let clock = gather::clock();
    Report::new(check::all(&machine, clock, &agent, tunnel_port))
}
