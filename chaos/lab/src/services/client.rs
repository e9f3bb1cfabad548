//! The client: a separate process, which belongs to a namespace and a cgroup or to none.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The time-out of one response.
const PATIENCE: Duration = Duration::from_secs(5);
/// New sockets, each of which sends one request from its own port.
pub const QUESTIONS: u16 = 1_000;
/// Requests on one connection.
const ROUND_TRIPS: usize = 5_000;

/// Medians of one client's measurements.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sample {
    /// From connect(2) of a new UDP socket to its first response.
    pub first_packet_us: f64,
    /// One byte back and forth on a TCP connection.
    pub round_trip_us: f64,
}

/// Runs this program as a client, in the place that `command` determines.
pub fn measure(mut command: Command, to: SocketAddr, first_port: u16) -> Result<Sample> {
    command.args(["services-client", &to.to_string(), &first_port.to_string()]).stdin(Stdio::null());
    let output = command.output().context("run the client")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("read what the client measured")
}

/// Sends requests, and returns the measurements as JSON.
pub fn ask(to: SocketAddr, first_port: u16) -> Result<String> {
    let mut first_packets = Vec::new();
    for port in first_port..first_port + QUESTIONS {
        let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("bind port {port}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let start = Instant::now();
        socket.connect(to)?;
        socket.send(&[0])?;
        socket.recv(&mut [0]).with_context(|| format!("no answer from {to} by UDP"))?;
        first_packets.push(start.elapsed());
    }
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut round_trips = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        stream.write_all(&[0])?;
        stream.read_exact(&mut [0]).with_context(|| format!("no answer from {to} by TCP"))?;
        round_trips.push(start.elapsed());
    }
    let sample = Sample { first_packet_us: median_us(first_packets), round_trip_us: median_us(round_trips) };
    Ok(serde_json::to_string(&sample)? + "\n")
}

fn median_us(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64() * 1e6
}
