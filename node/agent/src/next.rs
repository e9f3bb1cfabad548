//! `warrend-next`: the agent with maps of another layout (feature `next-layout`), which tests upgrade to.

use std::process::ExitCode;

fn main() -> ExitCode {
    node_agent::main()
}
