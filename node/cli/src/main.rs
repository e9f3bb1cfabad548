//! `warren`: the command line. It requests answers from the agent of this node (for `doctor`, also from the machine) and prints
//! them. It decides nothing itself.

mod arguments;
mod files;
mod manifest;
mod progress;
mod render;

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use arguments::{
    Arguments, CidrCommand, Command, EndpointCommand, FlowCommand, IdentityCommand, IpCommand, MapCommand,
    NodeCommand, ObserveArguments, Output, ServiceCommand, StateArguments, StateCommand,
};
use clap::{CommandFactory, Parser};
use identity::Labels;
use node_api::{
    AttachmentKind, Client, DiffQuery, EndpointAdd, FlowQuery, KindName, LimitQuery, ObserveLine,
    ObserveQuery,
};
use render::Style;
use serde::Serialize;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("start the runtime").and_then(|runtime| runtime.block_on(run(arguments)));
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of the output has closed it, as in `warren observe | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Prints answers to the standard output.
struct Printer {
    json: bool,
    style: Style,
}

impl Printer {
    /// Prints an answer: as JSON for programs, rendered for human readers.
    fn print<T: Serialize>(&self, answer: &T, render: impl FnOnce(&T, Style) -> String) -> Result<()> {
        let text =
            if self.json { serde_json::to_string_pretty(answer)? + "\n" } else { render(answer, self.style) };
        let mut output = io::stdout().lock();
        output.write_all(text.as_bytes())?;
        output.flush()?;
        Ok(())
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let client = Client::new(&arguments.socket).with_timeout(Duration::from_secs(arguments.timeout));
    let colour =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let out = Printer { json: arguments.output == Output::Json, style: Style { colour } };
    match arguments.command {
        Command::Status => out.print(&client.status().await?, render::status)?,
        Command::Doctor { tunnel_port } => {
            let report = node_doctor::examine(&client, tunnel_port).await;
            out.print(&report, render::doctor)?;
            if report.has_failure() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Node(NodeCommand::List) => out.print(&client.nodes().await?, render::nodes)?,
        Command::Node(NodeCommand::Remove { name }) => {
            out.print(&client.node_remove(&name).await?, |answer, _| {
                format!("node {} removed\n", answer.name)
            })?;
        }
        Command::Endpoint(command) => endpoint(&client, &out, command).await?,
        Command::Apply(files) => return manifest::apply(&client, &out, &files.file).await,
        Command::Get { kind, name } => manifest::get(&client, &out, kind, name).await?,
        Command::Diff(files) => return manifest::diff(&client, &out, &files.file).await,
        Command::Delete { kind, name, files } => {
            return manifest::delete(&client, &out, kind.zip(name), &files.file).await;
        }
        Command::Service(ServiceCommand::List) => {
            let services = client.objects(KindName::Service).await?;
            out.print(&services, |services, _| render::objects(KindName::Service, services))?;
        }
        Command::Service(ServiceCommand::Get { name }) => {
            out.print(&client.service(&name).await?, render::service)?;
        }
        Command::Identity(IdentityCommand::List) => {
            out.print(&client.identities().await?, render::identities)?;
        }
        Command::Ip(IpCommand::List(limit)) => {
            out.print(&client.ips(&LimitQuery { limit: limit.limit }).await?, render::ips)?;
        }
        Command::Cidr(CidrCommand::Release { cidr }) => {
            out.print(&client.cidr_release(cidr).await?, |answer, _| {
                format!("{} released; it is quarantined before another node may claim it\n", answer.cidr)
            })?;
        }
        Command::Map(MapCommand::List) => out.print(&client.maps().await?, render::maps)?,
        Command::Map(MapCommand::Dump { name, limit }) => {
            out.print(&client.map_dump(&name, &LimitQuery { limit: limit.limit }).await?, render::map_dump)?;
        }
        Command::State(StateArguments { command: None }) => {
            out.print(&client.state().await?, render::state)?
        }
        Command::State(StateArguments { command: Some(StateCommand::Diff { repair }) }) => {
            let answer = client.state_diff(&DiffQuery { repair }).await?;
            out.print(&answer, render::state_diff)?;
            if !answer.differences.is_empty() && !answer.repaired {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Observe(arguments) => observe(&client, &out, arguments).await?,
        Command::Flow(FlowCommand::List { limit, filter }) => {
            let query = FlowQuery {
                limit: limit.limit,
                from: filter.from,
                to: filter.to,
                protocol: filter.protocol,
                port: filter.port,
            };
            out.print(&client.flows(&query).await?, render::flows)?;
        }
        Command::Drops => out.print(&client.drops().await?, render::drops)?,
        Command::Version => {
            let answer = client.version().await?;
            out.print(&answer, |answer, _| {
                format!(
                    "warren  {}\nwarrend {} (API {}, ABI {})\n",
                    env!("CARGO_PKG_VERSION"),
                    answer.agent,
                    answer.api,
                    answer.abi
                )
            })?;
        }
        Command::Completion { shell } => {
            // Rendered to memory first: clap_complete panics if its writer fails, as a closed pipe does.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "warren", &mut script);
            io::stdout().write_all(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn endpoint(client: &Client, out: &Printer, command: EndpointCommand) -> Result<()> {
    match command {
        EndpointCommand::Add { name, netns, interface, labels, ip } => {
            let labels = Labels::parse(&labels).unwrap_or_else(|mistake| {
                Arguments::command().error(clap::error::ErrorKind::ValueValidation, mistake).exit()
            });
            let request = EndpointAdd {
                name,
                labels,
                attachment: AttachmentKind::Netns { path: namespace_path(&netns), interface },
                address: ip,
            };
            out.print(&client.endpoint_add(&request).await?, render::endpoint_added)
        }
        EndpointCommand::List => out.print(&client.endpoints().await?, render::endpoints),
        EndpointCommand::Get { name } => out.print(&client.endpoint(&name).await?, render::endpoint),
        EndpointCommand::Drain { name } => out.print(&client.endpoint_drain(&name).await?, |answer, _| {
            let what = if answer.already { "was drained before" } else { "takes no new flows" };
            format!("endpoint {name} {what}\n")
        }),
        EndpointCommand::Delete { name } => out.print(&client.endpoint_delete(&name).await?, |answer, _| {
            let what = if answer.existed { "deleted" } else { "was not there" };
            format!("endpoint {name} {what}\n")
        }),
    }
}

/// The path of a namespace: a word without `/` is a name in /run/netns, as in `ip netns`.
fn namespace_path(text: &Path) -> PathBuf {
    if text.components().count() == 1 && !text.has_root() {
        Path::new("/run/netns").join(text)
    } else {
        std::path::absolute(text).unwrap_or_else(|_| text.to_owned())
    }
}

async fn observe(client: &Client, out: &Printer, arguments: ObserveArguments) -> Result<()> {
    let mut lines = client
        .observe(&ObserveQuery {
            follow: arguments.follow,
            last: arguments.last,
            verdict: arguments.verdict,
            kind: arguments.kind,
            reason: arguments.reason,
            from: arguments.filter.from,
            to: arguments.filter.to,
            protocol: arguments.filter.protocol,
            port: arguments.filter.port,
        })
        .await?;
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("wait for Ctrl-C")?;
                return Ok(());
            }
        };
        let Some(line) = line else { return Ok(()) };
        let text = if out.json { serde_json::to_string(&line)? } else { observe_line(&line, out.style) };
        let mut output = io::stdout().lock();
        writeln!(output, "{text}")?;
        output.flush()?;
    }
}

fn observe_line(line: &ObserveLine, style: Style) -> String {
    match line {
        ObserveLine::Event(event) => render::event(event, style),
        ObserveLine::Lagged { events } => format!("… {events} events lost: the reader is too slow"),
    }
}
