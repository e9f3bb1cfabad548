//! The scenarios of `chaos/scenarios` that are short enough for every run (`make chaos` runs all), and the scenario
//! runner: a scenario with unmet expectations must fail and leave nothing behind.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::ensure;
use chaos_lab::{
    process,
    scenario::{self, RunReport, Scenario, Watch},
    wait,
};
use nix::sys::signal::Signal;

use crate::support::{SOON, TestLab, WARREN_LAB, finish, lab_name, remains};

/// These tests run on any machine beside others: they check what happens, and `make chaos` checks how soon.
const PATIENCE: u32 = 10;

/// Runs a scenario of this repository with a fixed seed; all its expectations must be met.
fn check(name: &str) {
    let Some(lab) = lab_name(&name[..name.len().min(16)]) else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../scenarios/{name}.toml"));
    let scenario = Scenario::read(&path, 1).unwrap().with_patience(PATIENCE);
    let report = scenario::run(&scenario, lab.clone(), false, |line| eprintln!("{line}")).unwrap();
    assert!(report.passed, "{}", report.text());
    assert_eq!(remains(&lab), <[String; 0]>::default());
}

#[test]
fn scenario_etcd_frozen_then_killed_holds() {
    check("etcd-frozen-then-killed");
}

#[test]
fn scenario_etcd_wiped_holds() {
    check("etcd-wiped");
}

#[test]
fn scenario_etcd_restored_holds() {
    check("etcd-restored");
}

#[test]
fn scenario_partition_halves_holds() {
    check("partition-halves");
}

#[test]
fn scenario_with_unmet_expectations_fails_and_leaves_nothing() {
    let Some(lab) = lab_name("badstory") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("story.toml");
    let story = "
endpoint n1/a app=a
endpoint n2/a app=a
expect converged --within 10s
probe ping pings n1/a n2/a
probe streams streams n1/a n2/a --count 3 --stall 500ms
cut n1 n2
wait 1s
expect reaches n1/a n2/a --within 1s
expect status n1 \"no such text\" --within 0s
heal
expect reaches n1/a n2/a
expect clean streams
expect clean streams --steady
expect clean pings
expect recorded
";
    let text = format!("title = 't'\nwhy = 'w'\nstory = '''{story}'''\n[fleet]\nnodes = 2\netcd = 1\n");
    fs::write(&file, text).unwrap();
    let run = || {
        let mut command = Command::new(WARREN_LAB);
        command.args(["--name", lab.as_str(), "run"]).arg(&file).args(["--seed", "3", "-o", "json"]);
        command
    };
    let (code, stdout, stderr) = finish(&mut run());
    assert_eq!(code, 1, "{stderr}");
    let report: RunReport = serde_json::from_str(&stdout).unwrap();
    let failed: Vec<(usize, bool)> = report.expectations.iter().map(|it| (it.line, it.held)).collect();
    let expected =
        [(6, true), (11, false), (12, false), (14, true), (15, true), (16, false), (17, false), (18, true)];
    assert_eq!(failed, expected, "{}", report.text());
    assert_eq!((report.passed, report.broken.as_deref(), report.errors.len()), (false, None, 0));
    assert_eq!(remains(&lab), <[String; 0]>::default());

    // The reader of the output goes away.
    let mut child = run().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait::until("the story to begin", SOON, || {
        ensure!(chaos_lab::namespace::exists(&lab.endpoint_namespace("n2", "a")), "not yet");
        Ok(())
    })
    .unwrap();
    process::signal(child.id() as i32, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(remains(&lab), <[String; 0]>::default());
}

#[test]
fn kernel_watch_reports_entries_that_leave_a_map() {
    let Some(lab) = TestLab::up("watch", 1, 0) else { return };
    let kept = lab.endpoint("n1", "kept", "app=a");
    let gone = lab.endpoint("n1", "gone", "app=a");
    let origin = Instant::now();
    let watch = Watch::start(&lab);
    watch.deleted(gone.address, true);
    watch.wait_seen(kept.address, SOON).unwrap();
    lab.delete_endpoint("n1", "gone").unwrap();

    let IpAddr::V4(address) = kept.address else { panic!("IPv4 only") };
    let pin = lab.pin_path("n1").join("maps/WARREN_IPC_V4");
    let key = address.octets().map(|byte| byte.to_string());
    let mut arguments = vec!["map", "delete", "pinned", pin.to_str().unwrap(), "key"];
    arguments.extend(key.iter().map(String::as_str));
    process::run(&lab.name().machine_namespace("n1"), "bpftool", &arguments).unwrap();

    let left = wait::until("the watch to see it", SOON, || {
        let left = watch.left_since(origin)?;
        ensure!(!left.is_empty(), "nothing has left");
        Ok(left)
    })
    .unwrap();
    let entries: Vec<&str> = left.iter().map(|left| left.entry.as_str()).collect();
    assert_eq!(entries, [format!("n1: {address} left WARREN_IPC_V4")]);
}
