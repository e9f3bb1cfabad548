//! `warren-lab`: a fleet on one machine.

mod demo;
mod latency;

use std::{
    net::SocketAddr,
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result};
use chaos_lab::{Lab, LabName, LabStatus, Spec, probe, process, take_down, wait};
use clap::{Parser, Subcommand, ValueEnum};
use identity::Labels;
use nix::sys::signal::Signal;

/// Labs of Warren: nodes, etcd members and endpoints in network namespaces of this machine.
#[derive(Debug, Parser)]
#[command(name = "warren-lab", version, arg_required_else_help = true)]
struct Arguments {
    /// The lab's name; labs of different names run side by side.
    #[arg(long, global = true, default_value = "lab", env = "WARREN_LAB")]
    name: String,
    /// How answers are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a lab and wait until its fleet is whole.
    Up {
        #[command(flatten)]
        size: Size,
        /// Endpoints on each node: `a`, `b`, ….
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=26))]
        endpoints: u8,
    },
    /// Make a lab and show what a fleet does: pings, a TCP transfer, the ipcache, the flows. Leaves it standing.
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
    /// Take everything of a lab away. Doing it again is no error.
    Down {
        /// All labs of this machine.
        #[arg(long)]
        all: bool,
    },
    /// One side of a transfer: wait for a connection.
    #[command(hide = true)]
    TcpServe { listen: SocketAddr },
    /// The other side of a transfer: send.
    #[command(hide = true)]
    TcpSend {
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
        #[arg(long)]
        seed: u64,
    },
}

#[derive(Debug, clap::Args)]
struct Size {
    /// Nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// etcd members; with 0 a single node keeps its records in memory.
    #[arg(long, default_value_t = 3)]
    etcd: u8,
}

#[derive(Debug, Subcommand)]
enum EndpointCommand {
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
enum AgentAction {
    /// SIGTERM, and wait.
    Stop,
    /// SIGKILL, and wait.
    Kill,
    /// Start it, and wait until it is ready.
    Start,
    /// Stop and start.
    Restart,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("warren-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let name = LabName::new(&arguments.name)?;
    let json = arguments.output == Output::Json;
    let open = || Lab::open(name.clone(), progress);
    match arguments.command {
        Command::Up { size, endpoints } => {
            let lab = up(name, &size)?;
            add_endpoints(&lab, endpoints)?;
            show_status(&lab.status()?, json)?;
        }
        Command::Demo { size, bytes } => {
            let lab = up(name, &size)?;
            add_endpoints(&lab, 2)?;
            demo::run(&lab, bytes)?;
        }
        Command::Status => show_status(&open()?.status()?, json)?,
        Command::List => {
            let names: Vec<String> = Lab::list()?.iter().map(|name| name.as_str().to_owned()).collect();
            if json {
                println!("{}", serde_json::to_string(&names)?);
            } else {
                names.iter().for_each(|name| println!("{name}"));
            }
        }
        Command::Exec { target, command } => {
            let (program, rest) = command.split_first().context("no command")?;
            let status = open()?
                .command(&target, program)?
                .args(rest)
                .stdin(Stdio::inherit())
                .status()
                .with_context(|| format!("run {program}"))?;
            return Ok(ExitCode::from(process::exit_code(status)));
        }
        Command::Endpoint(EndpointCommand::Add { node, name, labels }) => {
            let endpoint = open()?.add_endpoint(&node, &name, &Labels::parse(&labels)?)?;
            if json {
                println!("{}", serde_json::to_string(&endpoint)?);
            } else {
                println!("{node}/{name}: address {}, identity {}", endpoint.address, endpoint.identity);
            }
        }
        Command::Endpoint(EndpointCommand::Delete { node, name }) => {
            let existed = open()?.delete_endpoint(&node, &name)?;
            println!("{node}/{name} {}", if existed { "deleted" } else { "was not there" });
        }
        Command::Agent { action, node } => agent(&open()?, action, &node)?,
        Command::Logs { machine } => {
            let path = open()?.log_path(&machine);
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            print!("{text}");
        }
        Command::Latency { count } => latency::run(&open()?, count, json)?,
        Command::Down { all } => {
            let names = if all { Lab::list()? } else { vec![name] };
            for name in names {
                let removed = take_down(&name)?;
                let what =
                    if removed.is_empty() { "nothing was left".to_owned() } else { removed.join(", ") };
                progress(&format!("lab {} is down: {what}", name.as_str()));
            }
        }
        Command::TcpServe { listen } => {
            let report = probe::tcp_serve(listen, std::io::stdout())?;
            println!("{}", serde_json::to_string(&report)?);
        }
        Command::TcpSend { to, bytes, seed } => {
            println!("{}", serde_json::to_string(&probe::tcp_send(to, bytes, seed)?)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn progress(line: &str) {
    eprintln!("{line}");
}

/// Makes a lab; Ctrl-C meanwhile takes down what was made.
fn up(name: LabName, size: &Size) -> Result<Lab> {
    let spec = Spec::new(size.nodes, size.etcd)?;
    let existed = name.folder().exists();
    let guard = name.clone();
    let _watcher = std::thread::spawn(move || {
        chaos_lab::block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() && !existed {
                progress("interrupted: taking down what was made");
                if let Err(error) = take_down(&guard) {
                    progress(&format!("{error:#}"));
                }
            }
            std::process::exit(130);
        });
    });
    Lab::up(name, spec, progress)
}

/// Endpoints `a`, `b`, … on every node, with labels that differ by letter, not by node.
fn add_endpoints(lab: &Lab, count: u8) -> Result<()> {
    for node in lab.spec().node_names() {
        for index in 0..count {
            let name = char::from(b'a' + index).to_string();
            lab.add_endpoint(&node, &name, &Labels::parse([format!("app={name}"), "lab=demo".to_owned()])?)?;
        }
    }
    wait_known(lab, usize::from(count) * usize::from(lab.spec().nodes))
}

/// Waits until every node's ipcache holds this many endpoints.
fn wait_known(lab: &Lab, wanted: usize) -> Result<()> {
    for node in lab.spec().node_names() {
        wait::until(
            &format!("{wanted} endpoints in the ipcache of {node}"),
            std::time::Duration::from_secs(20),
            || {
                let known = chaos_lab::block_on(lab.api(&node).ips(&node_api::LimitQuery::default()))?;
                let endpoints = known.items.iter().filter(|entry| entry.identity.is_fleet()).count();
                anyhow::ensure!(endpoints >= wanted, "{endpoints} are there");
                Ok(())
            },
        )?;
    }
    Ok(())
}

fn agent(lab: &Lab, action: AgentAction, node: &str) -> Result<()> {
    match action {
        AgentAction::Stop => lab.end_agent(node, Signal::SIGTERM),
        AgentAction::Kill => lab.end_agent(node, Signal::SIGKILL),
        AgentAction::Start => lab.start_agent(node).and_then(|()| lab.wait_node_ready(node)),
        AgentAction::Restart => {
            lab.end_agent(node, Signal::SIGTERM)?;
            lab.start_agent(node)?;
            lab.wait_node_ready(node)
        }
    }
}

fn show_status(status: &LabStatus, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(status)?);
        return Ok(());
    }
    println!("lab {}", status.name);
    for machine in &status.machines {
        let state = machine.problem.as_deref().unwrap_or("ok");
        println!("  {:<5} {:<14} {:<24} {state}", machine.name, machine.underlay, machine.namespace);
    }
    for endpoint in &status.endpoints {
        println!(
            "  {:<8} {:<15} identity {:<8} {}",
            format!("{}/{}", endpoint.node, endpoint.name),
            endpoint.address,
            endpoint.identity,
            endpoint.labels
        );
    }
    Ok(())
}
