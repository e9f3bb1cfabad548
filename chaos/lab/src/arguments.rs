//! The command line's grammar.

use chaos_lab::fault::FaultCommand;
use clap::{Parser, Subcommand, ValueEnum};

/// Labs of Warren: nodes, etcd members and endpoints in network namespaces of this machine.
#[derive(Debug, Parser)]
#[command(name = "warren-lab", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The lab's name; labs of different names run side by side.
    #[arg(long = "name", value_name = "NAME", global = true, default_value = "lab", env = "WARREN_LAB")]
    pub lab: String,
    /// How answers are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a lab and wait until its fleet is whole.
    Up {
        #[command(flatten)]
        size: Size,
        /// Endpoints on each node: `a`, `b`, ….
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=26))]
        endpoints: u8,
    },
    /// Make a lab, or take the one that stands, and show what a fleet does: pings, a TCP transfer, the ipcache, the flows. Leaves it standing.
    Demo {
        #[command(flatten)]
        size: Size,
        /// Bytes of the TCP transfer.
        #[arg(long, default_value_t = 256 << 20)]
        bytes: u64,
    },
    /// Show the machines and endpoints of a lab.
    Status,
    /// Show the names of all labs.
    List,
    /// Run a command on a node (`n1`), an etcd member (`e1`) or an endpoint (`n1/a`).
    Exec {
        /// Where.
        target: String,
        /// What.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Add or delete an endpoint through the agent of its node.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Stop, kill, start or restart an agent.
    Agent {
        /// What to do.
        #[arg(value_enum)]
        action: AgentAction,
        /// The node.
        node: String,
    },
    /// Print the log of a node or an etcd member.
    Logs {
        /// The machine.
        machine: String,
    },
    /// Measure: an endpoint added, until its first ping is answered, and until every other node knows it.
    Latency {
        /// Endpoints to add.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=200))]
        count: u32,
    },
    /// Measure: a service's first packets and round trips, alone and beside thousands of others; the same by iptables.
    Services {
        /// The others.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
        count: u32,
        /// How often everything is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=9))]
        rounds: u16,
    },
    /// The client of `services`, run where it shall be.
    #[command(hide = true)]
    ServicesClient {
        /// The service.
        to: std::net::SocketAddr,
        /// The first port that it asks from.
        first_port: u16,
    },
    /// Do something to the fleet: cut, lose, delay, pause, kill, reboot, wipe. What stands is listed and can be healed; `down` takes it away too.
    #[command(subcommand)]
    Fault(FaultCommand),
    /// What a fault needs for as long as it stands; started by `fault`.
    #[command(hide = true)]
    Helper {
        /// The fault's number.
        id: u32,
        /// The fault, as it is listed.
        fault: String,
    },
    /// Run a scenario in a lab of its own: a story of what happens to a fleet, and what must hold. Exit code 1 when it does not.
    Run {
        /// A file, or a name in chaos/scenarios.
        scenario: String,
        /// What chance is drawn from; a new one each time if not given.
        #[arg(long)]
        seed: Option<u64>,
        /// How many times as long as it says everything may take: this machine is busy.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
        patience: u32,
        /// Leave the lab standing.
        #[arg(long)]
        keep: bool,
    },
    /// Run an agent's log of events again, and compare what it leads to. Needs neither root nor a lab.
    Replay(crate::replay::ReplayArguments),
    /// Take everything of a lab away. Doing it again is no error.
    Down {
        /// All labs of this machine.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Size {
    /// Nodes.
    #[arg(long, default_value_t = 3)]
    pub nodes: u8,
    /// etcd members; with 0 a single node keeps its records in memory.
    #[arg(long, default_value_t = 3)]
    pub etcd: u8,
}

#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Make a network namespace and attach it.
    Add {
        /// The node.
        node: String,
        /// The endpoint's name.
        name: String,
        /// A label, `key=value`; more than once for more.
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Let go of an endpoint and delete its namespace.
    Delete {
        /// The node.
        node: String,
        /// The endpoint's name.
        name: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AgentAction {
    /// SIGTERM, and wait.
    Stop,
    /// SIGKILL, and wait.
    Kill,
    /// Start it, and wait until it is ready.
    Start,
    /// Stop and start.
    Restart,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_labs_name_and_an_endpoints_are_two() {
        let arguments =
            Arguments::parse_from(["warren-lab", "--name", "mine", "endpoint", "add", "n1", "web"]);
        assert_eq!(arguments.lab, "mine");
        let Command::Endpoint(EndpointCommand::Add { name, .. }) = arguments.command else {
            panic!("is an add")
        };
        assert_eq!(name, "web");
    }
}
