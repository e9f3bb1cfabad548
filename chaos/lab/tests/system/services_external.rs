//! External clients: a machine on the underlay without an agent reaches services by node ports and external addresses
//! of any node, in each mode; workloads and nodes reach the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use chaos_lab::{Endpoint, ask, namespace, process, spec::underlay_address};

use crate::{
    servers::{Server, are_installed, connect, counts, exchange},
    support::{TestLab, finish, use_scale_programs},
};

/// An external address: the client has a route for it.
const EXTERNAL: &str = "198.51.100.7";
/// Connections for the comparison of shares.
const MANY: usize = 120;

fn manifest(more: &str) -> String {
    format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         ports:\n  - {{name: tcp, port: 80, targetPort: 8080, nodePort: 30080, hostPort: 8088}}\n  \
         - {{name: udp, port: 53, targetPort: 5353, protocol: udp, nodePort: 30053}}\n  \
         - {{name: http, port: 8000, nodePort: auto}}\n  externalIps: [{EXTERNAL}]\n{more}"
    )
}

/// Writes the service, and waits until both nodes have it.
fn apply(lab: &TestLab, more: &str) {
    let written = lab.apply("n1", &manifest(more));
    for node in ["n1", "n2"] {
        lab.wait_served(node, &written, 3);
    }
}

/// What a client learns from many requests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// The backends that responded, and the client addresses that each saw.
    seen: BTreeMap<String, BTreeSet<IpAddr>>,
}

fn find(from: &str, to: SocketAddr, times: usize, once: fn(SocketAddr) -> Result<(String, IpAddr)>) -> Found {
    namespace::inside(from, || {
        let mut found = Found::default();
        for _ in 0..times {
            let (name, seen) = once(to).with_context(|| format!("from {from} to {to}"))?;
            found.seen.entry(name).or_default().insert(seen);
        }
        Ok(found)
    })
    .unwrap()
}

fn seen<'a>(expected: impl IntoIterator<Item = (&'a Endpoint, IpAddr)>) -> Found {
    let seen = expected.into_iter().map(|(backend, address)| (backend.name.clone(), [address].into()));
    Found { seen: seen.collect() }
}

#[test]
fn nodeport_and_external_addresses_serve_external_clients() {
    let Some(lab) = TestLab::up_with("svc-out", 2, 1, use_scale_programs) else { return };
    let backends = [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")]
        .map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let workload = lab.endpoint("n1", "client", "app=client");
    let _servers: Vec<Server> = backends.iter().map(Server::start).collect();
    lab.add_machine("x1").unwrap();
    let client_namespace = lab.name().machine_namespace("x1");
    let addresses = ["n1", "n2"].map(|node| IpAddr::from(underlay_address(node)));
    let via = addresses[0].to_string();
    process::run(&client_namespace, "ip", &["route", "add", EXTERNAL, "via", &via]).unwrap();
    let client = IpAddr::from(underlay_address("x1"));
    let nodes = ask(lab.api("n1").nodes()).unwrap().items;
    let gateways = [0, 1].map(|index: usize| nodes[index].gateway.unwrap());
    let external: IpAddr = EXTERNAL.parse().unwrap();
    type Once = fn(SocketAddr) -> Result<(String, IpAddr)>;
    // Each frontend, and the node that requests to it come to.
    let ways: [(SocketAddr, Once, usize); 6] = [
        (SocketAddr::new(addresses[0], 30080), connect, 0),
        (SocketAddr::new(addresses[1], 30080), connect, 1),
        (SocketAddr::new(addresses[0], 30053), exchange, 0),
        (SocketAddr::new(addresses[1], 30053), exchange, 1),
        (SocketAddr::new(external, 80), connect, 0),
        (SocketAddr::new(external, 53), exchange, 0),
    ];
    let on = |entry: usize, backend: &Endpoint| backend.node == ["n1", "n2"][entry];

    // Remote backends see the node that the requests come to.
    apply(&lab, "");
    for (to, once, entry) in ways {
        let expected = backends
            .iter()
            .map(|backend| (backend, if on(entry, backend) { client } else { gateways[entry] }));
        assert_eq!(find(&client_namespace, to, MANY, once), seen(expected), "{to}");
    }
    // A host port leads to the node's own backends.
    let local = |entry: usize| {
        backends.iter().filter(move |backend| on(entry, backend)).map(|backend| (backend, client))
    };
    for entry in [0, 1] {
        let to = SocketAddr::new(addresses[entry], 8088);
        assert_eq!(find(&client_namespace, to, MANY / 4, connect), seen(local(entry)), "{to}");
    }
    // Workloads and nodes use the same addresses. (Only the socket programs see what a node sends to itself.)
    let node = lab.name().machine_namespace("n2");
    let used = [
        (&workload.namespace, vec![SocketAddr::new(external, 80), ways[0].0, ways[1].0]),
        (&node, vec![SocketAddr::new(external, 80), ways[0].0]),
    ];
    for (from, to) in used.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, *to))) {
        let found = counts(from, to, MANY, connect).unwrap();
        assert_eq!(found.len(), backends.len(), "from {from} to {to}: {found:?}");
    }

    // Local backends only.
    apply(&lab, "  trafficPolicy: local\n");
    for (to, once, entry) in ways {
        assert_eq!(find(&client_namespace, to, MANY / 4, once), seen(local(entry)), "{to}");
    }

    // Every backend sees the client and responds directly.
    apply(&lab, "  mode: dsr\n");
    for (to, once, _) in ways {
        let expected = backends.iter().map(|backend| (backend, client));
        assert_eq!(find(&client_namespace, to, MANY, once), seen(expected), "{to}");
    }

    // All connections of one client reach one backend.
    apply(&lab, "  affinity: {timeoutSeconds: 60}\n");
    let found = counts(&client_namespace, SocketAddr::new(addresses[0], 30080), affine(), connect).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    println!("{} connections of one client with affinity: {found:?}", affine());

    weights(&lab, &backends, &[&workload.namespace, &client_namespace], addresses[0]);

    // Clients outside the source ranges get no response.
    apply(&lab, "  sourceRanges: [203.0.113.0/24]\n");
    let refused = namespace::inside(&client_namespace, || {
        let to = SocketAddr::new(addresses[0], 30080);
        Ok(std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(500)).is_err())
    });
    assert!(refused.unwrap());
    assert!(lab.drops("n1", "service-source") > 0);
    // Source ranges do not apply to the fleet itself.
    assert!(!counts(&workload.namespace, SocketAddr::new(external, 80), 10, connect).unwrap().is_empty());
}

/// A service of these backends with weights: each gets its share, from inside and outside the fleet.
fn weights(lab: &TestLab, backends: &[Endpoint], clients: &[&String], node: IpAddr) {
    let weights = [1, 3, 6];
    let listed: Vec<String> = backends
        .iter()
        .zip(weights)
        .map(|(backend, weight)| format!("{{address: {}, weight: {weight}}}", backend.address))
        .collect();
    let manifest = format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: weighted}}\nspec:\n  backends: [{}]\n  \
         ports: [{{port: 80, targetPort: 8080, nodePort: 30081}}]\n",
        listed.join(", ")
    );
    let written = lab.apply("n1", &manifest);
    lab.wait_served("n1", &written, backends.len());
    let times = if is_scale() { 10_000 } else { 400 };
    let to = SocketAddr::new(node, 30081);
    let by_packets = |from: &&String| (format!("by packets from {from}"), counts(from, to, times, connect));
    let mut found: Vec<_> = clients.iter().map(by_packets).collect();
    if are_installed(&["python3"]) {
        found.push(("at the socket".to_owned(), counts_at_the_socket(lab, to, times)));
    }
    for (how, found) in found {
        let found = found.unwrap();
        for (backend, weight) in backends.iter().zip(weights) {
            let wanted = f64::from(weight) / f64::from(weights.iter().sum::<u32>());
            let got = *found.get(&backend.name).unwrap_or(&0) as f64 / times as f64;
            println!(
                "weight {weight} {how}: {:.2} % of {times} connections, {:.2} % wanted",
                got * 1e2,
                wanted * 1e2
            );
            // Half a percent is the error of the slot table, the rest five standard deviations: at most 3 % for
            // 10,000 connections.
            let allowed = 0.005 + 5.0 * (wanted * (1.0 - wanted) / times as f64).sqrt();
            assert!((got - wanted).abs() < allowed, "{how}: {found:?}");
        }
    }
}

/// A program that sends this many requests and prints the number of responses of each backend.
const COUNT: &str = "
import collections, socket, sys
host, port, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
counts = collections.Counter()
for _ in range(times):
    with socket.create_connection((host, port), 20) as connection:
        counts[connection.makefile().read().split()[0]] += 1
for name, count in counts.items():
    print(name, count)
";

/// As [`counts`], by a process of the workload, whose connections are translated at the socket.
fn counts_at_the_socket(lab: &TestLab, to: SocketAddr, times: usize) -> Result<BTreeMap<String, usize>> {
    let mut command = lab.command("n1/client", "python3")?;
    command.args(["-c", COUNT, &to.ip().to_string(), &to.port().to_string(), &times.to_string()]);
    let (code, stdout, stderr) = finish(&mut command);
    ensure!(code == 0, "{stderr}");
    let line = |line: &str| {
        let (name, count) = line.split_once(' ').context("a name and a number")?;
        Ok((name.to_owned(), count.parse()?))
    };
    stdout.lines().map(line).collect()
}

/// Whether this is a run of `make test-scale`.
fn is_scale() -> bool {
    std::env::var_os("WARREN_SCALE_SERVICES").is_some()
}

/// The number of connections of one client in the affinity test.
fn affine() -> usize {
    if is_scale() { 1_000 } else { 100 }
}
