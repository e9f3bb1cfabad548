//! `warren doctor`: checks whether anything keeps Warren from working on a node, and names the remedies.
//!
//! `gather` collects facts (files of the kernel and of other programs, the clock, the agent's API). `check` judges them, in pure
//! functions `facts -> Finding`. Nothing is ever changed, and the only packets sent are a few pings to other nodes through the
//! tunnel. What cannot be determined is [`Verdict::Unknown`], never a guess.

mod check;
mod finding;
mod gather;

use std::path::Path;

pub use check::FULL_MAP_PERCENT;
pub use finding::{Counts, Finding, Report, Verdict};
use node_api::Client;

/// The default of `fleet.tunnel_port`, used if no agent answers.
pub const DEFAULT_TUNNEL_PORT: u16 = 8472;

/// Runs every check once, in a fixed order. Repeating it is safe.
///
/// Without an agent, the checks of the machine still run, and those of the agent are unknown. `tunnel_port` is the UDP port of
/// the fleet's tunnel.
pub async fn examine(client: &Client, tunnel_port: u16) -> Report {
    let agent = gather::agent(client).await;
    let machine = gather::machine(Path::new("/"));
    let clock = gather::clock();
    Report::new(check::all(&machine, clock, &agent, tunnel_port))
}
