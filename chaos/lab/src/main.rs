//! `warren-lab`: a fleet on one machine.

mod arguments;
mod demo;
mod latency;
mod replay;
mod services;

use std::{
    io::{self, ErrorKind, Write},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use arguments::{AgentAction, Arguments, Command, EndpointCommand, Output, Size};
use chaos_lab::{
    Lab, LabName, LabStatus, Spec, ask,
    fault::{self, FaultCommand},
    interrupt, process, require_root,
    scenario::{self, Scenario},
    take_down, wait,
};
use clap::Parser;
use identity::Labels;
use nix::sys::signal::Signal;
use node_api::LimitQuery;

/// How long new endpoints may take to be in every node's ipcache: seconds for a hundred of them.
const KNOWN_LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of our output is gone (`warren-lab logs n1 | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    })
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let name = LabName::new(&arguments.lab)?;
    let json = arguments.output == Output::Json;
    if !matches!(arguments.command, Command::List | Command::Replay(_)) {
        require_root()?;
    }
    let open = || Lab::open(name.clone(), progress);
    match arguments.command {
        Command::Up { size, endpoints } => {
            let lab = up(name, &size, endpoints)?;
            print(&status_text(&lab.status()?, json)?)?;
        }
        Command::Demo { size, bytes } => demo::run(&open_or_create(name, &size)?, bytes)?,
        Command::Status => print(&status_text(&open()?.status()?, json)?)?,
        Command::List => {
            let names: Vec<String> = Lab::list()?.iter().map(|name| name.as_str().to_owned()).collect();
            print(&if json {
                serde_json::to_string(&names)? + "\n"
            } else {
                names.iter().map(|name| format!("{name}\n")).collect()
            })?;
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
            print(&if json {
                serde_json::to_string(&endpoint)? + "\n"
            } else {
                format!("{node}/{name}: address {}, identity {}\n", endpoint.address, endpoint.identity)
            })?;
        }
        Command::Endpoint(EndpointCommand::Delete { node, name }) => {
            let existed = open()?.delete_endpoint(&node, &name)?;
            print(&format!("{node}/{name} {}\n", if existed { "deleted" } else { "was not there" }))?;
        }
        Command::Agent { action, node } => agent(&open()?, action, &node)?,
        Command::Logs { machine } => {
            let path = open()?.log_path(&machine);
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            print(&text)?;
        }
        Command::Latency { count } => print(&latency::run(&open()?, count, json)?)?,
        Command::Services { count, rounds } => print(&services::run(&open()?, count, rounds, json)?)?,
        Command::ServicesClient { to, first_port } => print(&services::run_client(to, first_port)?)?,
        Command::Fault(FaultCommand::List) if json => {
            print(&(serde_json::to_string_pretty(&open()?.faults()?)? + "\n"))?;
        }
        Command::Fault(command) => print(&(command.carry_out(&open()?)? + "\n"))?,
        Command::Helper { id, fault } => fault::helper::run(&open()?, id, &fault)?,
        Command::Run { scenario, seed, patience, keep } => {
            let seed = seed.unwrap_or_else(|| rand::random::<u32>().into());
            let scenario = Scenario::read(&scenario::find(&scenario)?, seed)?.with_patience(patience);
            progress(&format!("{}: {}\n{}\nseed {seed}", scenario.name, scenario.title, scenario.why));
            let report = scenario::run(&scenario, name, keep, progress)?;
            print(&if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text() })?;
            return Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Replay(arguments) => {
            let report = replay::run(&arguments)?;
            print(&if json { serde_json::to_string(&report)? + "\n" } else { report.text() })?;
            return Ok(if report.same() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Down { all } => down(&if all { Lab::list()? } else { vec![name] })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints progress for people, apart from the result.
fn progress(line: &str) {
    eprintln!("{line}");
}

/// Prints a result.
fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()?;
    Ok(())
}

/// Creates a lab with endpoints; after Ctrl-C, what was created is removed.
fn up(name: LabName, size: &Size, endpoints: u8) -> Result<Lab> {
    let _catch = interrupt::Catch::new()?;
    let lab = Lab::make(name, Spec::new(size.nodes, size.etcd)?, progress)?;
    lab.bring_up(|lab| {
        lab.start()?;
        add_endpoints(lab, endpoints)
    })?;
    Ok(lab)
}

/// The existing lab, or a new one: a second `make lab` shows the first one's fleet again.
fn open_or_create(name: LabName, size: &Size) -> Result<Lab> {
    if !Lab::list()?.contains(&name) {
        return up(name, size, 2);
    }
    let lab = Lab::open(name, progress)?;
    progress(&format!("lab {} stands already; it is shown as it is", lab.name().as_str()));
    lab.spec().node_names().try_for_each(|node| lab.wait_node_ready(&node))?;
    Ok(lab)
}

/// Adds endpoints `a`, `b`, … on every node, with labels that differ by letter, not by node.
fn add_endpoints(lab: &Lab, count: u8) -> Result<()> {
    for node in lab.spec().node_names() {
        for letter in (b'a'..).take(count.into()).map(char::from) {
            interrupt::check()?;
            let labels = Labels::parse([format!("app={letter}"), "lab=demo".to_owned()])?;
            lab.add_endpoint(&node, &letter.to_string(), &labels)?;
        }
    }
    let wanted = usize::from(count) * usize::from(lab.spec().nodes);
    for node in lab.spec().node_names() {
        wait::until(&format!("{wanted} endpoints in the ipcache of {node}"), KNOWN_LIMIT, || {
            let known = ask(lab.api(&node).ips(&LimitQuery::default()))?;
            let endpoints = known.items.iter().filter(|entry| entry.identity.is_fleet()).count();
            anyhow::ensure!(endpoints >= wanted, "{endpoints} are there");
            Ok(())
        })?;
    }
    Ok(())
}

fn agent(lab: &Lab, action: AgentAction, node: &str) -> Result<()> {
    lab.check_node(node)?;
    let start = || lab.start_agent(node).and_then(|()| lab.wait_node_ready(node));
    match action {
        AgentAction::Stop => lab.end(node, Signal::SIGTERM),
        AgentAction::Kill => lab.end(node, Signal::SIGKILL),
        AgentAction::Start => start(),
        AgentAction::Restart => lab.end(node, Signal::SIGTERM).and_then(|()| start()),
    }
}

/// Takes labs down, and goes on past failures.
fn down(names: &[LabName]) -> Result<()> {
    let mut failures = Vec::new();
    for name in names {
        match take_down(name) {
            Ok(removed) if removed.is_empty() => {
                progress(&format!("lab {} is down: nothing was left of it", name.as_str()));
            }
            Ok(removed) => progress(&format!("lab {} is down: {}", name.as_str(), removed.join(", "))),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

fn status_text(status: &LabStatus, json: bool) -> Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(status)? + "\n");
    }
    let mut text = format!("lab {}\n", status.name);
    for machine in &status.machines {
        let state = machine.problem.as_deref().unwrap_or("ok");
        text +=
            &format!("  {:<8} {:<15} {:<24} {state}\n", machine.name, machine.underlay, machine.namespace);
    }
    for endpoint in &status.endpoints {
        text += &format!(
            "  {:<8} {:<15} {:<24} identity {} {}\n",
            format!("{}/{}", endpoint.node, endpoint.name),
            endpoint.address,
            endpoint.namespace,
            endpoint.identity,
            endpoint.labels
        );
    }
    Ok(text)
}
