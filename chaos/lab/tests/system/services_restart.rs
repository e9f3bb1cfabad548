//! Services change while an agent is down: what stays keeps its ids and connections, and the changes are applied once
//! the agent is back.

use std::{collections::BTreeMap, fs, net::SocketAddr};

use anyhow::ensure;
use chaos_lab::{Endpoint, ask, spec::underlay_address, wait};
use nix::sys::signal::Signal;
use node_api::LimitQuery;

use crate::{
    load::{Backend, Conversation, PORT},
    services::no_differences,
    support::{SOON, TestLab},
};

/// The node port for external clients.
const NODE_PORT: u16 = 30090;

fn manifest(name: &str, port: u16, more: &str) -> String {
    format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         ports: [{{port: {port}, targetPort: {PORT}{more}}}]\n---\n"
    )
}

/// Applies or deletes manifests on a node.
fn warren(lab: &TestLab, node: &str, verb: &str, manifests: &str) {
    let file = lab.name().folder().join("restart.yaml");
    fs::write(&file, manifests).unwrap();
    let (code, stdout, stderr) = lab.warren(node, &[verb, "-f", file.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
}

/// Waits until a node and its kernel have these services, with these backends each.
fn wait_services(lab: &TestLab, node: &str, services: &[&str], backends: &[&Endpoint]) {
    let mut addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    addresses.sort_unstable();
    let expected: BTreeMap<_, _> = services.iter().map(|name| (*name, &addresses)).collect();
    wait::until(&format!("services {services:?} on {node}"), SOON, || {
        let items = ask(lab.api(node).services())?.items;
        let found: BTreeMap<&str, Vec<_>> = items
            .iter()
            .map(|service| {
                let mut found: Vec<_> = service.ports[0].backends.iter().map(|it| it.address).collect();
                found.sort_unstable();
                (service.name.as_str(), found)
            })
            .collect();
        ensure!(
            found.iter().map(|(name, it)| (*name, it)).eq(expected.iter().map(|(name, it)| (*name, *it))),
            "there are {found:?}"
        );
        ensure!(ask(lab.api(node).status())?.apply.pending == 0, "its kernel is behind");
        Ok(())
    })
    .unwrap();
}

/// A backend in the kernel: the service's id, address and port.
type Meaning = (u64, String, u64);

/// The kernel's id of each backend.
fn numbers(lab: &TestLab) -> BTreeMap<Meaning, u64> {
    let dump = ask(lab.api("n1").map_dump("WARREN_BACK_V4", &LimitQuery::default())).unwrap();
    let rows = dump.rows.iter().map(|row| {
        let number = |field: &str| row[field].as_u64().expect("a number");
        let address = row["address"].as_str().expect("a text").to_owned();
        ((number("service"), address, number("port")), number("key"))
    });
    rows.collect()
}

#[test]
fn service_changes_during_a_restart_are_applied() {
    let Some(lab) = TestLab::up("svc-restart", 2, 1) else { return };
    let client = lab.endpoint("n1", "client", "app=client");
    let external = lab.external_machine("x1");
    let start = |node: &str, name: &str| {
        let endpoint = lab.endpoint(node, name, "app=web");
        let backend = Backend::start(&endpoint, &client);
        (endpoint, backend)
    };
    let [(near, near_server), (far, far_server), (leaves, _leaving)] =
        [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")].map(|(node, name)| start(node, name));
    let stays = manifest("stays", 80, &format!(", nodePort: {NODE_PORT}"));
    warren(&lab, "n1", "apply", &(stays + &manifest("leaves", 81, "")));
    wait_services(&lab, "n1", &["leaves", "stays"], &[&near, &far, &leaves]);
    let vip = ask(lab.api("n1").service(&"stays".parse().unwrap())).unwrap().virtual_ip;
    let (inside, outside) =
        (SocketAddr::new(vip, 80), SocketAddr::new(underlay_address("n1").into(), NODE_PORT));

    let mut talks: Vec<(Conversation, &Endpoint)> = Vec::new();
    for backend in [&near, &far] {
        talks.push((Conversation::with(backend, &client, inside), backend));
        talks.push((Conversation::with(backend, &external, outside), backend));
    }
    let mut go_on = |when: &str| {
        for (talk, backend) in &mut talks {
            for _ in 0..50 {
                assert!(talk.goes_on_with(backend), "{when}: a connection to {}", backend.name);
            }
        }
    };
    go_on("before");
    let service =
        |name: &str| ask(lab.api("n1").service(&name.parse().unwrap())).unwrap().ports[0].id.unwrap();
    let (number, gone) = (service("stays"), service("leaves"));
    let before = numbers(&lab);
    assert_eq!(before.len(), 6, "{before:?}");

    lab.end("n1", Signal::SIGKILL).unwrap();
    go_on("while the agent is away");
    lab.delete_endpoint("n2", &leaves.name).unwrap();
    let (comes, _coming) = start("n2", "web-4");
    warren(&lab, "n2", "delete", &manifest("leaves", 81, ""));
    warren(&lab, "n2", "apply", &manifest("comes", 82, ""));
    wait_services(&lab, "n2", &["comes", "stays"], &[&near, &far, &comes]);
    go_on("while services change");

    lab.start_agent("n1").unwrap();
    lab.wait_node_ready("n1").unwrap();
    go_on("when the agent is back");
    wait_services(&lab, "n1", &["comes", "stays"], &[&near, &far, &comes]);
    go_on("when it has followed");

    assert_eq!(service("stays"), number);
    let after = numbers(&lab);
    let kept: BTreeMap<_, _> = before
        .iter()
        .filter(|((service, address, _), _)| {
            *service != u64::from(gone) && *address != leaves.address.to_string()
        })
        .collect();
    assert_eq!(kept.len(), 2, "{before:?}");
    for (backend, number) in kept {
        assert_eq!(after.get(backend), Some(number), "{backend:?}");
    }
    assert_eq!(after.len(), 6, "{after:?}");
    for backend in [&near, &far, &comes] {
        drop(Conversation::with(backend, &client, inside));
        drop(Conversation::with(backend, &external, outside));
    }
    let vip = ask(lab.api("n1").service(&"comes".parse().unwrap())).unwrap().virtual_ip;
    drop(Conversation::with(&comes, &client, SocketAddr::new(vip, 82)));
    drop(talks);
    drop((near_server, far_server));
    no_differences(&lab, "n1");
}
