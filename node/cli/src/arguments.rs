//! The grammar of the command line.

use std::{net::IpAddr, path::PathBuf};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;
use identity::{EndpointName, NodeName, ObjectName, ServiceName};
use ipnetwork::IpNetwork;
use node_api::{KindName, PartyFilter, Protocol, Verdict};
use node_observe::EventKind;

#[cfg(test)]
mod tests;

/// The default of `--timeout`: several times the longest that an agent takes to answer any request (10 s, for an endpoint that
/// waits for its identity or address).
const DEFAULT_TIMEOUT_SECONDS: u64 = 60;

/// Shows and changes the state of the Warren agent of this node.
///
/// Exit codes: 0 done, 1 failed (for `diff` and `state diff`: also if there are differences; for `doctor`: also if a
/// check fails), 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "warren", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The agent's socket.
    #[arg(long, global = true, env = "WARREN_SOCKET", hide_env_values = true, default_value = node_api::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// The format of answers.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// How many seconds to wait for an answer of the agent.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT_SECONDS)]
    pub timeout: u64,
    #[command(subcommand)]
    pub command: Command,
}

/// The format of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For human readers.
    Table,
    /// For programs: the answer of the agent's API; for streams, one object per line.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the state of this node at a glance.
    Status,
    /// Find what keeps this node from working, with remedies; exit 1 if a check fails. Changes nothing.
    #[command(
        after_help = "Run it as root, on the node itself. It needs no agent. Checks that could not be made are \
                            marked ?, and are not failures."
    )]
    Doctor {
        /// The tunnel's UDP port, as in fleet.tunnel_port; used only if no agent answers.
        #[arg(long, value_name = "PORT", default_value_t = node_doctor::DEFAULT_TUNNEL_PORT)]
        tunnel_port: u16,
    },
    /// Show and remove nodes of the fleet.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show, add and remove endpoints of this node.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Create or change the objects that manifests describe. Repeating it is safe.
    #[command(
        after_help = "Example of a manifest:\n  apiVersion: warren/v1\n  kind: Service\n  metadata:\n    name: web\n  spec:\n    selector: {matchLabels: {app: web}}\n    ports:\n    - {port: 80, targetPort: 8080}"
    )]
    Apply(Files),
    /// Show the objects of a kind as a table, or one object as a manifest that can be applied.
    Get {
        /// The kind of the objects.
        #[arg(value_parser = kind())]
        kind: KindName,
        /// The name of one object.
        name: Option<ObjectName>,
    },
    /// Show what `apply` would change; exit 1 if it would change something.
    Diff(Files),
    /// Delete a named object, or the objects that manifests name. Repeating it is safe.
    #[command(override_usage = "warren delete KIND NAME\n       warren delete -f FILE|DIR...")]
    Delete {
        /// The kind of the object.
        #[arg(required_unless_present = "file", requires = "name", conflicts_with = "file", value_parser = kind())]
        kind: Option<KindName>,
        /// The name of the object.
        name: Option<ObjectName>,
        #[command(flatten)]
        files: OptionalFiles,
    },
    /// Show services of the fleet and their backends.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Show identities of the fleet.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Show addresses with their identities and nodes.
    #[command(subcommand)]
    Ip(IpCommand),
    /// Release pod CIDRs of this node.
    #[command(subcommand)]
    Cidr(CidrCommand),
    /// Show the maps in the kernel.
    #[command(subcommand)]
    Map(MapCommand),
    /// Show the desired state of the kernel, and its difference from the observed state.
    #[command(args_conflicts_with_subcommands = true)]
    State(StateArguments),
    /// Show flows that begin and end, and packets that are dropped.
    #[command(
        after_help = "Examples:\n  warren observe --follow\n  warren observe --verdict dropped --last 20\n  warren observe --follow --from app=web --to 10.200.3.0/24 --protocol tcp --port 443"
    )]
    Observe(ObserveArguments),
    /// Show the flow table.
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Show the counters of dropped and forwarded packets, by reason and direction.
    Drops,
    /// Show the versions of this program and of the agent.
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
    /// Remove a node that will not come back, with its records, CIDRs and endpoints. Rejected while the node is alive.
    Remove {
        /// The name of the node.
        name: NodeName,
    },
}

#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Attach a workload, with an address and an identity. Repeating it is safe.
    #[command(
        after_help = "Example:\n  ip netns add web\n  warren endpoint add web-1 --netns web --label app=web --label tier=front"
    )]
    Add {
        /// The name of the endpoint, unique on this node.
        name: EndpointName,
        /// The workload's network namespace: a path, or a name in /run/netns.
        #[arg(long, value_name = "PATH|NAME")]
        netns: PathBuf,
        /// The name of the interface inside the namespace.
        #[arg(long, default_value = "eth0")]
        interface: String,
        /// A label; may be repeated. The labels decide the identity.
        #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// The address to use; if not set, the agent chooses one.
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<IpAddr>,
    },
    /// Show all endpoints of this node.
    List,
    /// Show one endpoint.
    Get {
        /// The name of the endpoint.
        name: EndpointName,
    },
    /// Stop new connections of services to a workload; running ones go on. Repeating it is safe.
    #[command(
        after_help = "Example: replace a backend without a failed request\n  warren endpoint drain web-1\n  warren endpoint delete web-1    # once its connections have ended"
    )]
    Drain {
        /// The name of the endpoint.
        name: EndpointName,
    },
    /// Detach a workload. Repeating it is safe.
    Delete {
        /// The name of the endpoint.
        name: EndpointName,
    },
}

#[derive(Debug, Args)]
pub struct Files {
    /// A file of manifests (YAML or JSON), a folder of such files, or - for the standard input; may be repeated.
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    pub file: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct OptionalFiles {
    /// A file of manifests (YAML or JSON), a folder of such files, or - for the standard input; may be repeated.
    #[arg(short, long = "file", value_name = "FILE|DIR")]
    pub file: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Show all services with the number of their backends.
    List,
    /// Show the backends of one service.
    Get {
        /// The name of the service.
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
    /// Show the desired entries of the ipcache.
    List(Limit),
}

#[derive(Debug, Subcommand)]
pub enum CidrCommand {
    /// Release a block of this node that no endpoint uses.
    Release {
        /// The block.
        cidr: IpNetwork,
    },
}

#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// Show all maps with their number of entries.
    List,
    /// Show the entries of a map, decoded.
    Dump {
        /// The name of the map, as `map list` shows it.
        name: String,
        #[command(flatten)]
        limit: Limit,
    },
}

#[derive(Debug, Args)]
pub struct Limit {
    /// The maximum number of rows.
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
    /// Read the kernel now, and show how it differs from the desired state; exit 1 if it does.
    Diff {
        /// Repair the differences.
        #[arg(long)]
        repair: bool,
    },
}

#[derive(Debug, Args)]
pub struct FlowFilter {
    /// The sender: an address, a prefix, identity:NUMBER, a reserved identity's name, KEY=VALUE or an endpoint's name.
    #[arg(long)]
    pub from: Option<PartyFilter>,
    /// The receiver, in the same form.
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
    /// Continue with events as they happen, until interrupted.
    #[arg(long, short)]
    pub follow: bool,
    /// How many remembered events to begin with. Default: none with --follow, otherwise all.
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
    /// Show the flows in the flow table.
    List {
        #[command(flatten)]
        limit: Limit,
        #[command(flatten)]
        filter: FlowFilter,
    },
}

/// Accepts the word of a kind; also its plural, and its name in manifests.
fn kind() -> impl TypedValueParser<Value = KindName> {
    let values = KindName::ALL
        .iter()
        .map(|kind| PossibleValue::new(kind.word()).aliases([kind.collection(), kind.as_str()]));
    PossibleValuesParser::new(values).map(move |text| {
        let found = KindName::ALL
            .iter()
            .find(|kind| [kind.word(), kind.collection(), kind.as_str()].contains(&text.as_str()));
        *found.expect("clap accepts only the forms of a kind")
    })
}

fn verdict(text: &str) -> Result<Verdict, String> {
    word(text, "forwarded or dropped")
}

fn event_kind(text: &str) -> Result<EventKind, String> {
    word(text, "flow-new, flow-end or drop")
}

/// Parses a value of an enum as the API writes it.
fn word<T: serde::de::DeserializeOwned>(text: &str, expected: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| format!("use {expected}"))
}
