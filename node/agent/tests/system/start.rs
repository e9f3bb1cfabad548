//! Starts of the agent that must fail, and starts that must not.

use std::{fs, os::unix::process::CommandExt, process::Command};

use crate::stage::{Stage, text};

#[test]
fn second_agent_is_refused_with_the_pid_of_the_first() {
    let Some(stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    let (state, run) = (stage.path("other-state"), stage.path("other-run"));
    let other_state = ["--node-state-dir", state.to_str().unwrap()];
    let other_run = [other_state.as_slice(), &["--node-run-dir", run.to_str().unwrap()]].concat();
    for (arguments, word) in [(&[] as &[&str], "node.state_dir"), (&other_state, "node.run_dir")] {
        let second = stage.warrend(arguments).output().unwrap();
        let said = text(&second);
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("pid {}", agent.pid())) && said.contains(word), "{said}");
    }
    let other_port = [other_run.as_slice(), &["--http-metrics-listen", "127.0.0.1:9965"]].concat();
    for (arguments, word) in [(other_run, "http.metrics_listen"), (other_port, "an agent is at work on")] {
        let second = stage.warrend(&arguments).output().unwrap();
        assert!(second.status.code() == Some(1) && text(&second).contains(word), "{}", text(&second));
    }
    assert!(stage.status().ready, "the first agent still has its socket");
    agent.stop();
}

#[test]
fn agent_without_etcd_starts_degraded_and_stops() {
    let Some(stage) = Stage::new() else { return };
    let key = stage.path("gossip.key");
    let made = stage.warrend(&["keygen", key.to_str().unwrap()]).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
    // Nothing listens on port 1 of the node's namespace.
    let agent = stage.start(&[
        "--store",
        "etcd",
        "--etcd-endpoints",
        "http://127.0.0.1:1",
        "--gossip-key-file",
        key.to_str().unwrap(),
    ]);
    let status = stage
        .wait("the store is lost", || Some(stage.status()).filter(|status| status.store.error.is_some()));
    assert!(!status.store.connected && !status.ready && !status.store.members[0].healthy);
    let health =
        stage.output(stage.node(), "curl", &["-s", "-w", "%{http_code}", "http://127.0.0.1:9964/healthz"]);
    let said = text(&health);
    assert!(said.contains("\"degraded\"") && said.ends_with("200"), "{said}");
    agent.stop();
}

#[test]
fn configuration_mistakes_are_all_reported_with_their_place() {
    let Some(stage) = Stage::new() else { return };
    fs::write(stage.path("warren.toml"), "store = \"memory\"\n[fleet]\npool = []\n[log]\nlevel = \"loud\"\n")
        .unwrap();
    let mut command = stage.warrend(&["check", "--gossip-port", "many"]);
    let output = command.env("WARREN_NODE_NAME", "Bad Name").env("WARREN_NODE_NMAE", "x").output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "fleet.pool: no such setting",
        "log.level",
        "--gossip-port: gossip.port",
        "WARREN_NODE_NAME: node.name",
        "WARREN_NODE_NMAE",
    ] {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
}

#[test]
fn flag_overrides_the_environment_and_that_the_file() {
    let Some(stage) = Stage::new() else { return };
    let name = |arguments: &[&str], variable: Option<&str>| {
        let mut command = stage.warrend(&["check", "-o", "json"]);
        command.args(arguments);
        if let Some(value) = variable {
            command.env("WARREN_NODE_NAME", value);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["node"]["name"].as_str().unwrap().to_owned()
    };
    assert_eq!(name(&[], None), "node");
    assert_eq!(name(&[], Some("from-environment")), "from-environment");
    assert_eq!(name(&["--node-name", "from-flag"], Some("from-environment")), "from-flag");
}

#[test]
fn agent_without_root_says_so() {
    let Some(stage) = Stage::new() else { return };
    // The other user must be able to read the program, wherever it was built.
    let program = std::env::temp_dir().join(format!("warrend-{}", std::process::id()));
    fs::copy(env!("CARGO_BIN_EXE_warrend"), &program).unwrap();
    let output = Command::new(&program).args(["--store", "memory"]).uid(65_534).gid(65_534).output();
    fs::remove_file(&program).unwrap();
    let output = output.unwrap();
    drop(stage);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("must run as root"), "{}", text(&output));
}
