//! The grammar of the command line.

use chaos_lab::fault::FaultCommand;
use clap::{Parser, Subcommand, ValueEnum};

/// Labs of Warren: nodes, etcd members and endpoints in network namespaces of this machine.
#[derive(Debug, Parser)]
#[command(name = "warren-lab", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Name of the lab; labs with different names run side by side.
    #[arg(long = "name", value_name = "NAME", global = true, default_value = "lab", env = "WARREN_LAB")]
    pub lab: String,
    /// Output format.
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
    /// Create a lab, and wait until its fleet is complete.
    Up {
        #[command(flatten)]
        size: Size,
        /// Endpoints on each node: `a`, `b`, ….
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=26))]
        endpoints: u8,
    },
    /// Create a lab, or use the existing one, and show what a fleet does: pings, a TCP transfer, the ipcache, the
    /// flows. The lab stays.
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
        /// Where to run the command.
        target: String,
        /// The command.
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
    /// Measure: from adding an endpoint to its first ping reply, and until every other node knows it.
    Latency {
        /// Endpoints to add.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=200))]
        count: u32,
    },
    /// Measure: a service's first packet and round trip, alone and beside thousands of others; the same with
    /// iptables.
    Services {
        /// Number of other services.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
        count: u32,
        /// Number of rounds.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=9))]
        rounds: u16,
    },
    /// The client of `services`, started where it belongs.
    #[command(hide = true)]
    ServicesClient {
        /// The service.
        to: std::net::SocketAddr,
        /// First source port.
        first_port: u16,
    },
    /// Inflict a fault on the fleet: cut, loss, delay, pause, kill, reboot, wipe. Active faults are listed and can be
    /// healed; `down` heals them too.
    #[command(subcommand)]
    Fault(FaultCommand),
    /// The process of an active fault; started by `fault`.
    #[command(hide = true)]
    Helper {
        /// Number of the fault.
        id: u32,
        /// The fault, as in the list.
        fault: String,
    },
    /// Run a scenario in its own lab: a sequence of faults, and what must hold. Exit code 1 if it does not hold.
    Run {
        /// A file, or a name in chaos/scenarios.
        scenario: String,
        /// Seed of random choices; a new one each time by default.
        #[arg(long)]
        seed: Option<u64>,
        /// Factor for all times of the scenario, for busy machines.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
        patience: u32,
        /// Keep the lab.
        #[arg(long)]
        keep: bool,
    },
    /// Replay an agent's event log, and compare the results. Needs neither root nor a lab.
    Replay(crate::replay::ReplayArguments),
    /// Remove everything of a lab. Repeating it is no error.
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
    /// Create a network namespace and attach it.
    Add {
        /// The node.
        node: String,
        /// The endpoint's name.
        name: String,
        /// A label, `key=value`; can be repeated.
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Detach an endpoint and delete its namespace.
    Delete {
        /// The node.
        node: String,
        /// The endpoint's name.
        name: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AgentAction {
    /// Send SIGTERM, and wait.
    Stop,
    /// Send SIGKILL, and wait.
    Kill,
    /// Start the agent, and wait until it is ready.
    Start,
    /// Stop and start.
    Restart,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn cli_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn endpoint_name_does_not_shadow_the_lab_name() {
        let arguments =
            Arguments::parse_from(["warren-lab", "--name", "mine", "endpoint", "add", "n1", "web"]);
        assert_eq!(arguments.lab, "mine");
        let Command::Endpoint(EndpointCommand::Add { name, .. }) = arguments.command else {
            panic!("is an add")
        };
        assert_eq!(name, "web");
    }
}
