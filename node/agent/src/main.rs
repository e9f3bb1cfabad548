//! `warrend`: the agent of a node. Everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    node_agent::main()
}
