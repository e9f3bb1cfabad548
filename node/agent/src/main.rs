//! `warrend`: the agent of a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    node_agent::main()
}
