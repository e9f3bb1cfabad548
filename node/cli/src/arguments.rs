//! The command line's grammar.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use identity::{EndpointName, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use node_api::{PartyFilter, Protocol, Verdict};
use node_observe::EventKind;

/// Shows and changes what the Warren agent of this node does.
///
/// Exit codes: 0 done, 1 failed (for `state diff`: also when there are differences; for `doctor`: also when a
/// check fails), 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "warren", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The agent's socket.
    #[arg(long, global = true, env = "WARREN_SOCKET", default_value = node_api::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How answers are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(subcommand)]
    pub command: Command,
}

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs: exactly what the agent's API answers; streams are one object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// How this node is, at a glance.
    Status,
    /// What keeps this node from working, and what to type about it; exit 1 when a check fails. Changes nothing.
    #[command(
        after_help = "Run it as root, on the node itself; it needs no agent. Checks that could not be made are \
                            marked ?, and are no failure."
    )]
    Doctor {
        /// The tunnel's UDP port, where no agent runs that knows it: fleet.tunnel_port of the configuration.
        #[arg(long, value_name = "PORT", default_value_t = node_doctor::DEFAULT_TUNNEL_PORT)]
        tunnel_port: u16,
    },
    /// Nodes of the fleet.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Endpoints of this node.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Make what manifests describe: new, or other than before. Doing it again changes nothing.
    #[command(
        after_help = "Example of a manifest:\n  apiVersion: warren/v1\n  kind: Service\n  metadata:\n    name: web\n  spec:\n    selector: {matchLabels: {app: web}}\n    ports:\n    - {port: 80, targetPort: 8080}"
    )]
    Apply(Files),
    /// Show what is there, as a list or as a manifest that can be applied.
    Get {
        /// What kind of thing.
        kind: KindWord,
        /// Its name; all without it.
        name: Option<ServiceName>,
    },
    /// Show what `apply` would change; exit 1 when it would change something.
    Diff(Files),
    /// Delete what is named, or what manifests name. What is not there is no error.
    #[command(override_usage = "warren delete KIND NAME\n       warren delete -f FILE|DIR...")]
    Delete {
        /// What kind of thing.
        #[arg(required_unless_present = "file", requires = "name", conflicts_with = "file")]
        kind: Option<KindWord>,
        /// Its name.
        name: Option<ServiceName>,
        #[command(flatten)]
        files: OptionalFiles,
    },
    /// Services of the fleet.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Identities of the fleet.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Addresses, their identities and nodes.
    #[command(subcommand)]
    Ip(IpCommand),
    /// Pod CIDRs of this node.
    #[command(subcommand)]
    Cidr(CidrCommand),
    /// What the kernel holds.
    #[command(subcommand)]
    Map(MapCommand),
    /// What the agent wants of the kernel, and where the two differ.
    #[command(args_conflicts_with_subcommands = true)]
    State(StateArguments),
    /// Flows that begin and end, and packets that are dropped.
    #[command(
        after_help = "Examples:\n  warren observe --follow\n  warren observe --verdict dropped --last 20\n  warren observe --follow --from app=web --to 10.200.3.0/24 --protocol tcp --port 443"
    )]
    Observe(ObserveArguments),
    /// The flow table.
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Packets dropped and forwarded, by reason and direction.
    Drops,
    /// Versions of this program and of the agent.
    Version,
    /// Print the completion script of a shell.
    #[command(after_help = "Example:\n  warren completion bash > /etc/bash_completion.d/warren")]
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Show all nodes.
    List,
    /// Remove a node that will not come back: its records, CIDRs and endpoints. Refused while it is alive.
    Remove {
        /// Its name.
        name: NodeName,
    },
}

#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Attach a workload: gives it an address and an identity. Repeating it is safe.
    #[command(
        after_help = "Example:\n  ip netns add web\n  warren endpoint add web-1 --netns web --label app=web --label tier=front"
    )]
    Add {
        /// Its name, unique on this node.
        name: EndpointName,
        /// Its network namespace: a path, or the name of one in /run/netns.
        #[arg(long, value_name = "PATH|NAME")]
        netns: PathBuf,
        /// The interface's name inside.
        #[arg(long, default_value = "eth0")]
        interface: String,
        /// A label; more than once for more. Labels decide the identity.
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// The address wanted, if it matters.
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<IpAddr>,
    },
    /// Show all endpoints of this node.
    List,
    /// Show one endpoint.
    Get {
        /// Its name.
        name: EndpointName,
    },
    /// Take a workload out of the choice for new connections to services; those that run go on. Repeating it is safe.
    #[command(
        after_help = "Example: replace a backend without a failed request\n  warren endpoint drain web-1\n  warren endpoint delete web-1    # once its connections have ended"
    )]
    Drain {
        /// Its name.
        name: EndpointName,
    },
    /// Detach a workload. One that is not there is no error.
    Delete {
        /// Its name.
        name: EndpointName,
    },
}

/// Kinds of things that manifests describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindWord {
    /// A service.
    #[value(alias = "services", alias = "Service")]
    Service,
}

#[derive(Debug, Args)]
pub struct Files {
    /// A file of manifests (YAML or JSON), a folder of such files, or - for the standard input; more than once for more.
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    pub file: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct OptionalFiles {
    /// A file of manifests (YAML or JSON), a folder of such files, or - for the standard input; more than once for more.
    #[arg(short, long = "file", value_name = "FILE|DIR")]
    pub file: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Show all services and how many backends their ports have.
    List,
    /// Show the backends of one service.
    Get {
        /// Its name.
        name: ServiceName,
    },
}

#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Show all identities with their labels.
    List,
}

#[derive(Debug, Subcommand)]
pub enum IpCommand {
    /// Show what the ipcache should hold.
    List(Limit),
}

#[derive(Debug, Subcommand)]
pub enum CidrCommand {
    /// Give back a block of this node that no endpoint uses.
    Release {
        /// The block.
        cidr: IpNetwork,
    },
}

#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// Show all maps with their fill.
    List,
    /// Show the entries of a map, decoded.
    Dump {
        /// Its name, as `map list` shows it.
        name: String,
        #[command(flatten)]
        limit: Limit,
    },
}

#[derive(Debug, Args)]
pub struct Limit {
    /// The most rows to show.
    #[arg(long)]
    pub limit: Option<usize>,
}

#[derive(Debug, Args)]
pub struct StateArguments {
    #[command(subcommand)]
    pub command: Option<StateCommand>,
}

#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Read the kernel now and show where it differs from what the agent wants; exit 1 when it does.
    Diff {
        /// Repair what differs.
        #[arg(long)]
        repair: bool,
    },
}

#[derive(Debug, Args)]
pub struct FlowFilter {
    /// The sender: an address, a prefix, identity:NUMBER, a reserved identity's name, KEY=VALUE or an endpoint's name.
    #[arg(long)]
    pub from: Option<PartyFilter>,
    /// The receiver, in the same words.
    #[arg(long)]
    pub to: Option<PartyFilter>,
    /// tcp, udp, icmp, sctp or a number.
    #[arg(long)]
    pub protocol: Option<Protocol>,
    /// The port of either side.
    #[arg(long)]
    pub port: Option<u16>,
}

#[derive(Debug, Args)]
pub struct ObserveArguments {
    /// Go on with events as they happen, until interrupted.
    #[arg(long, short)]
    pub follow: bool,
    /// How many of the remembered events to begin with: all without --follow, none with it, by default.
    #[arg(long, short = 'n')]
    pub last: Option<usize>,
    /// forwarded or dropped.
    #[arg(long, value_parser = verdict)]
    pub verdict: Option<Verdict>,
    /// flow-new, flow-end or drop.
    #[arg(long, value_parser = event_kind)]
    pub kind: Option<EventKind>,
    /// A drop reason, as `warren drops` shows it.
    #[arg(long)]
    pub reason: Option<String>,
    #[command(flatten)]
    pub filter: FlowFilter,
}

#[derive(Debug, Subcommand)]
pub enum FlowCommand {
    /// Show flows that are in the flow table now.
    List {
        #[command(flatten)]
        limit: Limit,
        #[command(flatten)]
        filter: FlowFilter,
    },
}

fn verdict(text: &str) -> Result<Verdict, String> {
    word(text, "forwarded or dropped")
}

fn event_kind(text: &str) -> Result<EventKind, String> {
    word(text, "flow-new, flow-end or drop")
}

/// Reads an enum's word as the API writes it.
fn word<T: serde::de::DeserializeOwned>(text: &str, expected: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| format!("use {expected}"))
}
