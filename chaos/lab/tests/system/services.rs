//! Services end to end: manifests, real servers on several nodes, and clients that are workloads and nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use anyhow::ensure;
use chaos_lab::{Endpoint, ask, namespace, process, wait};
use nix::sys::signal::Signal;
use node_api::{Listing, Service, StateDiff};

use crate::{
    servers::{Server, WebServer, are_installed, connect, counts, exchange},
    support::{SOON, TestLab},
};

/// Connections for the comparison of shares.
const MANY: usize = 300;

pub const MANIFEST: &str = "\
apiVersion: warren/v1
kind: Service
metadata:
  name: web
spec:
  selector: {matchLabels: {app: web}}
  ports:
  - {name: tcp, port: 80, targetPort: 8080}
  - {name: udp, port: 53, targetPort: 5353, protocol: udp}
  - {name: http, port: 8000}
";

/// Waits until a node knows a service with this many backends at each port.
pub fn wait_backends(lab: &TestLab, node: &str, expected: usize) {
    wait::until(&format!("{expected} backends on {node}"), SOON, || {
        let listing = ask(lab.api(node).services())?;
        let found: Vec<usize> =
            listing.items.iter().flat_map(|service| &service.ports).map(|port| port.backends.len()).collect();
        ensure!(found == [expected; 3], "it has {found:?}");
        let status = ask(lab.api(node).status())?;
        ensure!(status.apply.pending == 0, "its kernel is behind");
        Ok(())
    })
    .unwrap();
}

pub fn no_differences(lab: &TestLab, node: &str) {
    let diff: StateDiff = lab.warren_json(node, &["state", "diff"]);
    assert_eq!(diff.differences, Vec::<String>::new(), "{node}");
}

#[test]
fn service_is_reached_by_workloads_and_nodes() {
    let Some(lab) = TestLab::up("services", 2, 1) else { return };
    let backends = [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")]
        .map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let client = lab.endpoint("n1", "client", "app=client");
    let servers: Vec<Server> = backends.iter().map(Server::start).collect();

    let file = lab.name().folder().join("web.yaml");
    fs::write(&file, MANIFEST).unwrap();
    let path = file.to_str().unwrap();
    let vip = apply(&lab, path);
    for node in ["n1", "n2"] {
        wait_backends(&lab, node, 3);
    }

    let all: BTreeSet<String> = backends.iter().map(|endpoint| endpoint.name.clone()).collect();
    let machines = ["n1", "n2"].map(|node| lab.name().machine_namespace(node));
    // A backend is a client too, and may connect to itself.
    let clients = [&client.namespace, &backends[0].namespace, &machines[0], &machines[1]];
    for from in clients {
        for (port, once) in [(80, connect as fn(_) -> _), (53, exchange)] {
            let to = SocketAddr::new(vip, port);
            let found = counts(from, to, MANY, once).unwrap_or_else(|error| panic!("from {from}: {error:#}"));
            eprintln!("{from} to {to}: {found:?}");
            // A third each; five standard deviations are 41 of 300.
            assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), all, "from {from} to {to}");
            assert!(found.values().all(|count| (50..=150).contains(count)), "from {from} to {to}: {found:?}");
        }
    }
    // The backend sees the client's address, also on the other node.
    let (_, seen) = namespace::inside(&client.namespace, || connect(SocketAddr::new(vip, 80))).unwrap();
    assert_eq!(seen, client.address);
    http(&lab, &client, &backends, vip);

    // A deleted backend gets no new flow.
    let gone = &backends[2];
    lab.delete_endpoint(&gone.node, &gone.name).unwrap();
    for (node, from) in [("n1", &client.namespace), ("n2", &machines[1])] {
        wait_backends(&lab, node, 2);
        let found = counts(from, SocketAddr::new(vip, 80), 100, connect).unwrap();
        assert!(!found.contains_key(&gone.name) && found.len() == 2, "{found:?}");
    }
    for node in ["n1", "n2"] {
        no_differences(&lab, node);
    }

    // Without backends, clients are rejected at once, and the drops name the service.
    for endpoint in &backends[..2] {
        lab.delete_endpoint(&endpoint.node, &endpoint.name).unwrap();
    }
    wait_backends(&lab, "n1", 0);
    let error = namespace::inside(&client.namespace, || connect(SocketAddr::new(vip, 80))).unwrap_err();
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{error:#}");
    assert!(lab.drops("n1", "no-backend") > 0);
    drop(servers);

    let (code, stdout, stderr) = lab.warren("n2", &["delete", "-f", path]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "service web deleted\n", ""));
    wait::until("the service to leave n1", SOON, || {
        ensure!(ask(lab.api("n1").services())?.items.is_empty(), "it is there");
        ensure!(ask(lab.api("n1").status())?.apply.pending == 0, "its kernel is behind");
        Ok(())
    })
    .unwrap();
    no_differences(&lab, "n1");
}

/// Applies the manifest twice; returns the virtual IP.
pub fn apply(lab: &TestLab, path: &str) -> IpAddr {
    let (code, stdout, stderr) = lab.warren("n1", &["diff", "-f", path]);
    assert_eq!((code, stderr.as_str()), (1, ""), "{stdout}");
    let (code, stdout, stderr) = lab.warren("n1", &["apply", "-f", path]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let vip = stdout.trim().strip_prefix("service web created: virtual IP ").expect("created");
    let vip: IpAddr = vip.parse().unwrap();
    wait::until("n2 to know the service", SOON, || {
        ask(lab.api("n2").service(&"web".parse()?))?;
        Ok(())
    })
    .unwrap();
    let (code, stdout, _) = lab.warren("n2", &["apply", "-f", path]);
    assert_eq!((code, stdout.trim()), (0, format!("service web unchanged: virtual IP {vip}").as_str()));
    let (code, stdout, _) = lab.warren("n2", &["diff", "-f", path]);
    assert_eq!((code, stdout.as_str()), (0, "nothing to change\n"));
    vip
}

/// A real web server and a real client.
fn http(lab: &TestLab, client: &Endpoint, backends: &[Endpoint], vip: IpAddr) {
    if !are_installed(&["python3", "curl"]) {
        return;
    }
    let _servers: Vec<WebServer> = backends.iter().map(WebServer::start).collect();
    let machine = lab.name().machine_namespace("n2");
    for from in [&client.namespace, &machine] {
        let url = format!("http://{vip}:8000/name");
        let mut found = BTreeSet::new();
        wait::until("all web servers to answer", SOON, || {
            found.insert(process::run(from, "curl", &["--silent", "--fail", "--max-time", "20", &url])?);
            ensure!(found.len() == backends.len(), "only {found:?} answer");
            Ok(())
        })
        .unwrap();
    }
}

/// etcd is down: services keep working, also over a restart of the agent, follow endpoints by gossip, and cannot be
/// written.
#[test]
fn services_survive_etcd_and_a_restart() {
    let Some(mut lab) = TestLab::up("svc-away", 2, 1) else { return };
    lab.expect_errors();
    let backend = lab.endpoint("n2", "web-1", "app=web");
    let client = lab.endpoint("n1", "client", "app=client");
    let _server = Server::start(&backend);
    let file = lab.name().folder().join("web.yaml");
    fs::write(&file, MANIFEST).unwrap();
    let path = file.to_str().unwrap();
    let vip = apply(&lab, path);
    wait_backends(&lab, "n1", 1);
    let to = SocketAddr::new(vip, 80);
    let one = |name: &str| BTreeMap::from([(name.to_owned(), 20)]);
    assert_eq!(counts(&client.namespace, to, 20, connect).unwrap(), one("web-1"));
    let number = |lab: &TestLab| {
        let service: Service = ask(lab.api("n1").service(&"web".parse().unwrap())).unwrap();
        service.ports.iter().map(|port| port.id).collect::<Vec<_>>()
    };
    let numbers = number(&lab);
    // A kill between the two writes is the subject of another test.
    let snapshot = lab.name().folder().join("n1/state/snapshot");
    wait::until("the service in the snapshot of n1", SOON, || {
        let bytes = fs::read(&snapshot)?;
        ensure!(bytes.windows(9).any(|window| window == b"virtualIp"), "it is not in it");
        Ok(())
    })
    .unwrap();

    lab.end("e1", Signal::SIGKILL).unwrap();
    wait::until("n1 to see that the store is away", SOON, || {
        ensure!(!ask(lab.api("n1").status())?.store.connected, "it has not noticed");
        Ok(())
    })
    .unwrap();
    let (code, stdout, stderr) = lab.warren("n1", &["delete", "service", "web"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("services are deleted in etcd, which cannot be done now"), "{stderr}");

    lab.end("n1", Signal::SIGKILL).unwrap();
    assert_eq!(counts(&client.namespace, to, 20, connect).unwrap(), one("web-1"));
    lab.start_agent("n1").unwrap();
    lab.wait_node_ready("n1").unwrap();
    assert_eq!(number(&lab), numbers);
    assert_eq!(counts(&client.namespace, to, 20, connect).unwrap(), one("web-1"));
    let listing: Listing<Service> = lab.warren_json("n1", &["service", "list"]);
    assert_eq!(listing.items.len(), 1);
    let other = lab.endpoint("n2", "web-2", "app=web");
    let _other_server = Server::start(&other);
    wait_backends(&lab, "n1", 2);
    let found = counts(&client.namespace, to, 100, connect).unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
}
