//! P4: an agent that starts while etcd is unreachable serves its node from the files of the previous agent.

use std::{
    fs::File,
    process::{Child, Stdio},
};

use node_agent::snapshot;
use node_api::EndpointState;
use node_core::Snapshot;

use crate::stage::{Agent, Stage, text};

/// An etcd in the node's namespace, for this test; killed when dropped.
struct Etcd(Child);

impl Etcd {
    /// `None`, with the reason printed, where etcd is not installed.
    fn start(stage: &Stage) -> Option<Self> {
        if let Err(error) = std::process::Command::new("etcd").arg("--version").output() {
            println!("skipped: needs etcd: {error}");
            return None;
        }
        let folder = stage.path("etcd");
        let log = File::create(stage.path("etcd.log")).unwrap();
        let mut command = stage.command(stage.node(), "etcd");
        command.args(["--data-dir", folder.to_str().unwrap(), "--log-level", "error"]);
        command.stderr(log).stdout(Stdio::null());
        let etcd = Self(command.spawn().unwrap());
        stage.wait("etcd answers", || {
            let health = stage.output(stage.node(), "curl", &["-s", "http://127.0.0.1:2379/health"]);
            text(&health).contains("\"true\"").then_some(())
        });
        Some(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(stage: &Stage) -> Agent {
    let key = stage.path("gossip.key");
    if !key.exists() {
        let made = stage.warrend(&["keygen", key.to_str().unwrap()]).output().unwrap();
        assert!(made.status.success(), "{}", text(&made));
    }
    stage.start(&["--store", "etcd", "--gossip-key-file", key.to_str().unwrap()])
}

#[test]
fn restart_without_etcd_keeps_names_and_traffic_and_adds_endpoints() {
    let Some(mut stage) = Stage::new() else { return };
    let Some(etcd) = Etcd::start(&stage) else { return };
    let agent = start(&stage);
    stage.wait("the node is ready", || Some(stage.status()).filter(|status| status.ready));
    let (web, namespace) = stage.add_endpoint("web");
    stage.wait("the number of its labels is kept", || {
        let kept: Snapshot = snapshot::FORM.read(&stage.path("state/snapshot")).ok()?;
        kept.identities.iter().any(|kept| kept.id == web.identity).then_some(())
    });
    // An endpoint with the same labels whose record never reaches the store.
    drop(etcd);
    let late = stage.add_namespace("late");
    let late_request = node_api::EndpointAdd { name: "late".parse().unwrap(), ..stage.request("web", &late) };
    let client = stage.client();
    let late = stage.ask(client.endpoint_add(&late_request));
    // Loses everything that was not on disk when the endpoint was answered.
    drop(agent);

    let agent = start(&stage);
    let shown = stage.wait("the endpoints are known by their names", || {
        let shown = stage.ask(client.endpoints()).items;
        (shown.len() == 2).then_some(shown)
    });
    let ready =
        |added: &node_api::EndpointAdded| (added.name.clone(), Some(added.address), EndpointState::Ready);
    let told: Vec<_> =
        shown.into_iter().map(|endpoint| (endpoint.name, endpoint.address, endpoint.state)).collect();
    assert_eq!(told, [ready(&late), ready(&web)]);
    let again = stage.ask(client.endpoint_add(&stage.request("web", &namespace)));
    assert!(again.existed && again.address == web.address, "{again:?}");
    let ping = |to: &node_api::EndpointAdded| {
        let ping = stage.output(stage.node(), "ping", &["-c", "1", "-W", "5", &to.address.to_string()]);
        assert!(ping.status.success(), "{}", text(&ping));
    };
    ping(&web);
    assert!(stage.ask(client.endpoint_delete(&late.name)).existed);
    let fresh = stage.ask(client.endpoint_add(&late_request));
    assert_eq!((fresh.existed, fresh.identity), (false, web.identity));
    ping(&fresh);
    assert!(!stage.status().store.connected);

    let _etcd = Etcd::start(&stage);
    stage.wait("the store has it all", || {
        Some(stage.ask(client.endpoints()).items)
            .filter(|all| all.len() == 2 && all.iter().all(|endpoint| endpoint.recorded))
    });
    ping(&web);
    agent.stop();
}
