//! Three nodes with two endpoints each: all reach each other, with all bytes intact and the right identity.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    net::IpAddr,
    process::{Child, ChildStderr, Stdio},
};

use chaos_lab::{Endpoint, ask, probe, spec::underlay_address};
use node_api::EndpointState;

use crate::support::{TestLab, finish};

/// Bytes of the large transfers; `WARREN_TRANSFER_BYTES=1073741824` moves a gigabyte between all pairs.
const TRANSFER_BYTES: u64 = 64 << 20;
/// Bytes of the transfers between all other pairs: several windows, so that segments are merged and split.
const SMALL_TRANSFER_BYTES: u64 = 1 << 20;

#[test]
fn endpoints_reach_each_other_across_the_fleet() {
    let Some(lab) = TestLab::up("traffic", 3, 3) else { return };
    let nodes: Vec<String> = lab.spec().node_names().collect();
    let endpoints: Vec<Endpoint> = nodes
        .iter()
        .flat_map(|node| ["a", "b"].map(|name| lab.endpoint(node, name, &format!("app={name}"))))
        .collect();
    for node in &nodes {
        lab.wait_in_ipcache(node, &endpoints);
    }
    endpoints_ping_one_another(&endpoints);
    nodes_and_endpoints_ping_one_another(&lab, &nodes, &endpoints);
    transfers_arrive_whole(&endpoints);
    the_tunnel_carries_the_senders_identity(&lab, &endpoints);
    deleted_endpoints_are_forgotten(&lab, &endpoints);
    latency_is_measured(&lab);
}

fn pairs(endpoints: &[Endpoint]) -> impl Iterator<Item = (&Endpoint, &Endpoint)> {
    endpoints
        .iter()
        .flat_map(move |from| endpoints.iter().map(move |to| (from, to)))
        .filter(|(from, to)| from.address != to.address)
}

fn endpoints_ping_one_another(endpoints: &[Endpoint]) {
    for (from, to) in pairs(endpoints) {
        probe::ping(&from.namespace, to.address, 2).unwrap();
    }
}

fn nodes_and_endpoints_ping_one_another(lab: &TestLab, nodes: &[String], endpoints: &[Endpoint]) {
    let listing = ask(lab.api("n1").nodes()).unwrap();
    let gateways: Vec<IpAddr> = listing.items.iter().map(|node| node.gateway.unwrap()).collect();
    assert_eq!(gateways.len(), nodes.len());
    for node in nodes {
        let inside = lab.name().machine_namespace(node);
        for endpoint in endpoints {
            probe::ping(&inside, endpoint.address, 1).unwrap();
            probe::ping(&endpoint.namespace, underlay_address(node).into(), 1).unwrap();
        }
    }
    for endpoint in endpoints {
        for gateway in &gateways {
            probe::ping(&endpoint.namespace, *gateway, 1).unwrap();
        }
    }
}

fn transfers_arrive_whole(endpoints: &[Endpoint]) {
    let wanted = std::env::var("WARREN_TRANSFER_BYTES").ok().map(|text| text.parse().unwrap());
    for (seed, (from, to)) in (1..).zip(pairs(endpoints)) {
        // One pair across nodes and one on a node: the two paths of a packet.
        let large = (from.node == "n1" && from.name == "a") && (to.name == "b" && to.node != "n2");
        let usual = if large { TRANSFER_BYTES } else { SMALL_TRANSFER_BYTES };
        probe::transfer(from, to, wanted.unwrap_or(usual), seed).unwrap();
    }
}

/// A tcpdump on a node's underlay.
struct Capture {
    tcpdump: Child,
    lines: BufReader<ChildStderr>,
}

impl Capture {
    /// Returns once tcpdump listens.
    fn start(lab: &TestLab, node: &str, filter: &str) -> Self {
        let mut command = lab.command(node, "tcpdump").unwrap();
        // Debian's tcpdump takes port 8472 for OTV unless told otherwise. Both outputs share one pipe.
        command.args(["-nn", "-l", "--immediate-mode", "-T", "vxlan", "-i", "eth0", "-c", "4", filter]);
        let mut tcpdump =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "tcpdump has ended");
        }
        Self { tcpdump, lines }
    }

    /// The output, after four packets.
    fn packets(mut self) -> String {
        let output = self.tcpdump.stdout.take().unwrap();
        let text = std::io::read_to_string(output).unwrap();
        self.tcpdump.wait().unwrap();
        drop(self.lines);
        text
    }
}

fn the_tunnel_carries_the_senders_identity(lab: &TestLab, endpoints: &[Endpoint]) {
    let find =
        |node: &str, name: &str| endpoints.iter().find(|it| it.node == node && it.name == name).unwrap();
    let (from, to) = (find("n1", "a"), find("n2", "b"));
    assert_ne!(from.identity, to.identity);
    let sent = Capture::start(lab, "n1", "udp port 8472 and src host 172.30.1.1");
    let answered = Capture::start(lab, "n1", "udp port 8472 and src host 172.30.1.2");
    probe::ping(&from.namespace, to.address, 4).unwrap();
    for (capture, sender) in [(sent, from), (answered, to)] {
        let text = capture.packets();
        let seen: BTreeSet<u32> = text
            .lines()
            .filter_map(|line| line.split_once("vni ")?.1.split(|it: char| !it.is_ascii_digit()).next())
            .map(|digits| digits.parse().unwrap())
            .collect();
        assert_eq!(seen, BTreeSet::from([sender.identity]), "{text}");
    }
}

fn deleted_endpoints_are_forgotten(lab: &TestLab, endpoints: &[Endpoint]) {
    let gone = endpoints.last().unwrap();
    lab.delete_endpoint(&gone.node, &gone.name).unwrap();
    for node in lab.spec().node_names() {
        chaos_lab::wait::until("the address to leave the ipcache", crate::support::SOON, || {
            match crate::support::ipcache_identity(&lab.api(&node), gone)? {
                None => Ok(()),
                Some(identity) => anyhow::bail!("{node} has it with identity {identity}"),
            }
        })
        .unwrap();
    }
    let left = ask(lab.api(&gone.node).endpoints()).unwrap();
    assert_eq!(left.items.len(), 1);
    assert!(left.items.iter().all(|endpoint| endpoint.state == EndpointState::Ready));
}

fn latency_is_measured(lab: &TestLab) {
    let mut command = std::process::Command::new(crate::support::WARREN_LAB);
    command.args(["--name", lab.name().as_str(), "latency", "--count", "5", "-o", "json"]);
    let (code, stdout, stderr) = finish(&mut command);
    assert_eq!(code, 0, "{stderr}");
    let spreads: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    assert_eq!(spreads.len(), 3, "{stdout}");
    for spread in spreads {
        assert!(spread["median_ms"].as_f64().unwrap() > 0.0, "{spread}");
    }
    eprintln!("{stdout}");
}
