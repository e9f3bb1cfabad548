//! `warren-lab services`: what a service costs its clients alone and beside thousands of others, and the same with
//! iptables.
//!
//! All variants are measured in turn, round by round, so that a slow minute affects all of them; the result is the
//! median, minimum and maximum of the rounds' medians. Client and server share one CPU.

mod client;
mod rules;

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use chaos_lab::{Endpoint, Lab, ask, interrupt, namespace, process, wait};
pub use client::ask as run_client;
use client::{QUESTIONS, Sample};
use identity::Labels;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use rules::Routed;
use serde::Serialize;

/// How long 10,000 services may take until the kernel has them.
const LIMIT: Duration = Duration::from_secs(120);
/// The port of the server.
const SERVER_PORT: u16 = 7_000;
/// The measured service, of both kinds.
const FRONTEND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 80);
/// The first source port of a client. No port is used twice: it would belong to a known flow.
const FIRST_PORT: u16 = 10_000;
/// Endpoints of this measurement.
const ENDPOINTS: [&str; 2] = ["bench-client", "bench-server"];

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Measurement {
    /// The version of iptables.
    iptables: String,
    rounds: u16,
    rows: Vec<Row>,
}

/// One variant of a service, beside a number of others.
#[derive(Debug, Serialize)]
struct Row {
    way: &'static str,
    services: u32,
    first_packet_us: Spread,
    round_trip_us: Spread,
}

/// The rounds' medians.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(samples: impl Iterator<Item = f64>) -> Self {
        let mut samples: Vec<f64> = samples.collect();
        samples.sort_by(f64::total_cmp);
        Self { median: samples[samples.len() / 2], min: samples[0], max: samples[samples.len() - 1] }
    }
}

/// Measures, and removes what it created.
pub fn run(lab: &Lab, count: u32, rounds: u16, json: bool) -> Result<String> {
    let _catch = interrupt::Catch::new()?;
    stay_on_one_processor()?;
    let measured = measure(lab, count, rounds);
    for name in ENDPOINTS {
        lab.delete_endpoint("n1", name).with_context(|| format!("clean up {name}"))?;
    }
    let measurement = measured?;
    Ok(if json { serde_json::to_string_pretty(&measurement)? + "\n" } else { text(&measurement)? })
}

fn measure(lab: &Lab, count: u32, rounds: u16) -> Result<Measurement> {
    let services = Services::make(lab, count)?;
    let [few, many] = [("few", 0), ("many", count)].map(|(name, others)| Routed::make(lab, name, others));
    let (few, many) = (few?, many?);
    let ways = ["warren, by packets", "warren, at the socket", "iptables"];
    let mut samples: [[Vec<Sample>; 2]; 3] = Default::default();
    let mut port = FIRST_PORT;
    let mut take = |way: usize, beside: usize, from: Command| -> Result<()> {
        interrupt::check()?;
        samples[way][beside].push(client::measure(from, FRONTEND, port)?);
        port += QUESTIONS;
        Ok(())
    };
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for beside in [0, 1] {
            if beside == 1 {
                services.warren("apply", &services.many, count + 1)?;
            }
            take(0, beside, services.client_outside_the_cgroup()?)?;
            take(1, beside, lab.command(&format!("n1/{}", services.client.name), program()?)?)?;
            take(2, beside, [&few, &many][beside].client(program()?)?)?;
        }
        services.warren("delete", &services.many, 1)?;
    }
    let row = |way: &'static str, services, samples: &[Sample]| Row {
        way,
        services,
        first_packet_us: Spread::of(samples.iter().map(|it| it.first_packet_us)),
        round_trip_us: Spread::of(samples.iter().map(|it| it.round_trip_us)),
    };
    let rows = ways.iter().zip(&samples).flat_map(|(way, samples)| {
        [1, count + 1].into_iter().zip(samples).map(|(services, samples)| row(way, services, samples))
    });
    Ok(Measurement { iptables: rules::version()?, rounds, rows: rows.collect() })
}

fn text(measurement: &Measurement) -> Result<String> {
    let Measurement { iptables, rounds, rows } = measurement;
    let mut text = format!(
        "microseconds: median (least to greatest) of {rounds} rounds; {iptables}\n{:<24} {:>8}   {:<28} {:<28}\n",
        "way", "services", "first packet", "round trip"
    );
    let cell = |Spread { median, min, max }: Spread| format!("{median:.1} ({min:.1} to {max:.1})");
    for Row { way, services, first_packet_us, round_trip_us } in rows {
        let (first, next) = (cell(*first_packet_us), cell(*round_trip_us));
        writeln!(text, "{way:<24} {services:>8}   {first:<28} {next:<28}")?;
    }
    Ok(text)
}

/// A client and a server on one node, and the manifests of the services.
struct Services<'a> {
    lab: &'a Lab,
    client: Endpoint,
    /// Services that existed before.
    before: usize,
    one: PathBuf,
    many: PathBuf,
}

impl<'a> Services<'a> {
    fn make(lab: &'a Lab, count: u32) -> Result<Self> {
        let labels = Labels::parse(["app=bench"])?;
        let [client, server] = ENDPOINTS.map(|name| lab.add_endpoint("n1", name, &labels));
        let server = server?;
        echo(&server.namespace)?;
        let others = (0..count).map(|number| {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + number);
            manifest(&format!("bench-{number}"), address.into(), "auto")
        });
        let [one, many] = ["one", "many"].map(|name| lab.name().folder().join(format!("bench-{name}.yaml")));
        fs::write(&one, manifest("bench", server.address, &FRONTEND.ip().to_string()))?;
        fs::write(&many, others.collect::<String>())?;
        let before = ask(lab.api("n1").services())?.items.len();
        let services = Self { lab, client: client?, before, one, many };
        services.warren("apply", &services.one, 1)?;
        Ok(services)
    }

    /// Runs `warren` on a manifest, and waits until the kernel has this many services.
    fn warren(&self, verb: &str, file: &Path, expected: u32) -> Result<()> {
        let output = self.lab.command("n1", "warren")?.args([verb, "-f"]).arg(file).output()?;
        ensure!(output.status.success(), "warren {verb}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let api = self.lab.api("n1");
        wait::until("the kernel to have the services", LIMIT, || {
            let found = ask(api.services())?.items.len().saturating_sub(self.before);
            ensure!(found == expected as usize, "it knows {found}");
            let pending = ask(api.status())?.apply.pending;
            ensure!(pending == 0, "{pending} changes are pending");
            Ok(())
        })
    }

    /// A client whose sockets are not translated, so that its packets are.
    fn client_outside_the_cgroup(&self) -> Result<Command> {
        let mut command = Command::new(program()?);
        process::enter(&mut command, &self.client.namespace, None)?;
        Ok(command)
    }
}

impl Drop for Services<'_> {
    fn drop(&mut self) {
        for file in [&self.many, &self.one] {
            let deleted = self
                .lab
                .command("n1", "warren")
                .and_then(|mut command| Ok(command.args(["delete", "-f"]).arg(file).output()?));
            if let Err(error) = deleted {
                eprintln!("delete {}: {error:#}", file.display());
            }
        }
    }
}

/// A service with one backend, by TCP and UDP.
fn manifest(name: &str, address: IpAddr, virtual_ip: &str) -> String {
    format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  virtualIp: {virtual_ip}\n  \
         backends: [{{address: {address}}}]\n  ports:\n  - {{name: t, port: {port}, targetPort: {SERVER_PORT}}}\n  \
         - {{name: u, port: {port}, targetPort: {SERVER_PORT}, protocol: udp}}\n---\n",
        port = FRONTEND.port()
    )
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

/// Keeps this thread and the processes that it starts on one CPU: they wait for each other and not for the scheduler.
fn stay_on_one_processor() -> Result<()> {
    let us = Pid::from_raw(0);
    let allowed = sched_getaffinity(us).context("read this process's processors")?;
    let mut one = CpuSet::new();
    for processor in 0..CpuSet::count() {
        if allowed.is_set(processor)? {
            one.set(processor)?;
            break;
        }
    }
    sched_setaffinity(us, &one).context("stay on one processor")
}

/// Echoes over UDP and TCP until this program ends.
fn echo(inside: &str) -> Result<()> {
    let address = ("0.0.0.0", SERVER_PORT);
    let (datagrams, listener) =
        namespace::inside(inside, || Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)))?;
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, peer)) = datagrams.recv_from(&mut buffer) {
            // The client may be gone.
            drop(datagrams.send_to(&buffer[..length], peer));
        }
    });
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.set_nodelay(true));
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        }
    });
    Ok(())
}
