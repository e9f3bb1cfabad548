//! `warren-lab` in use: labs side by side, interrupted, incomplete, taken down twice.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::ensure;
use chaos_lab::{
    LabName, LabStatus, namespace, process, take_down,
    wait::{self, Hopeless},
};
use nix::sys::signal::Signal;

use crate::support::{SOON, TestLab, WARREN_LAB, finish, lab_name, our_devices, remains};

/// Takes a lab down when its test ends, whoever created the lab.
struct Guard(LabName);

impl Drop for Guard {
    fn drop(&mut self) {
        let result = take_down(&self.0);
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

fn warren_lab(name: &LabName, arguments: &[&str]) -> Command {
    let mut command = Command::new(WARREN_LAB);
    command.args(["--name", name.as_str()]).args(arguments);
    command
}

fn check(name: &LabName, arguments: &[&str], code: i32, expected: &str) -> String {
    let (actual, stdout, stderr) = finish(&mut warren_lab(name, arguments));
    assert_eq!(actual, code, "{arguments:?}: {stdout}{stderr}");
    assert!(stdout.contains(expected) || stderr.contains(expected), "{arguments:?}: {stdout}{stderr}");
    stdout
}

#[test]
fn lab_leaves_nothing_behind() {
    let Some(name) = lab_name("whole") else { return };
    let devices = our_devices();
    let _guard = Guard(name.clone());
    check(&name, &["up", "--nodes", "1", "--etcd", "1", "--endpoints", "1"], 0, "n1/a");
    assert!(!remains(&name).is_empty(), "the look for remains finds a lab that is there");
    assert_eq!(our_devices(), devices, "a lab's devices are in its own namespaces");

    check(&name, &["up"], 1, "is there already");
    let pages = check(&name, &["exec", "n1", "--", "warren", "status"], 0, "OK");
    assert!(pages.contains("n1 of fleet"), "{pages}");
    check(&name, &["exec", "n1/a", "--", "sh", "-c", "exit 7"], 7, "");
    check(&name, &["exec", "n9", "--", "true"], 1, "neither a machine nor an endpoint");
    check(&name, &["endpoint", "add", "n1", "web", "--label", "app=web"], 0, "n1/web");
    check(&name, &["endpoint", "add", "n1", "web", "--label", "app=web"], 1, "already");
    check(&name, &["endpoint", "add", "n9", "web"], 1, "it has n1");
    check(&name, &["endpoint", "delete", "n1", "web"], 0, "deleted");
    check(&name, &["logs", "n1"], 0, "");
    check(&name, &["agent", "restart", "n1"], 0, "");
    check(&name, &["agent", "kill", "n1"], 0, "");
    let text = check(&name, &["status", "-o", "json"], 0, "");
    let status: LabStatus = serde_json::from_str(&text).unwrap();
    assert_eq!(status.machines[0].problem.as_deref(), Some("no process"));
    assert_eq!(status.machines[1].problem, None);
    check(&name, &["agent", "start", "n1"], 0, "");

    check(&name, &["down"], 0, "is down");
    assert_eq!(remains(&name), <[String; 0]>::default());
    check(&name, &["down"], 0, "nothing was left");
    check(&name, &["status"], 1, "no lab");
    assert_eq!(our_devices(), devices);
}

#[test]
fn lab_demo_uses_the_existing_lab() {
    let Some(name) = lab_name("demo") else { return };
    let _guard = Guard(name.clone());
    let demo = ["demo", "--nodes", "2", "--etcd", "1", "--bytes", "1000000"];
    let first = check(&name, &demo, 0, "on both sides");
    assert!(first.contains("3 received") && first.contains("10.200."), "{first}");
    check(&name, &demo, 0, "stands already");
    check(&name, &["endpoint", "delete", "n1", "a"], 0, "deleted");
    check(&name, &demo, 1, "make it anew");
}

#[test]
fn labs_are_isolated() {
    let Some(one) = TestLab::up("one", 1, 1) else { return };
    let Some(two) = TestLab::up("two", 1, 1) else { return };
    let (first, second) = (one.endpoint("n1", "a", "app=a"), two.endpoint("n1", "a", "app=a"));
    // The same addresses, each in its own lab.
    assert_eq!(first.address, second.address);
    drop(one);
    let after = two.status().unwrap();
    assert!(after.machines.iter().all(|machine| machine.problem.is_none()), "{after:?}");
    assert_eq!(after.endpoints, [second]);
}

/// Starts `up` and stops the process after the first agent was started. SIGCONT lets it continue.
fn half_way(name: &LabName) -> Child {
    let mut up = warren_lab(name, &["up", "--nodes", "3", "--etcd", "1"]);
    let mut child = up.stdin(Stdio::null()).spawn().unwrap();
    let first_log = name.folder().join("n1.log");
    wait::until("the first agent to be started", SOON, || {
        if let Some(status) = child.try_wait()? {
            return Err(Hopeless(format!("it has ended with {status}")).into());
        }
        ensure!(first_log.exists(), "{} is not there", first_log.display());
        Ok(())
    })
    .unwrap();
    process::signal(child.id() as i32, Signal::SIGSTOP).unwrap();
    child
}

#[test]
fn lab_up_removes_everything_when_interrupted() {
    let Some(name) = lab_name("interrupted") else { return };
    let _guard = Guard(name.clone());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = half_way(&name);
        process::signal(child.id() as i32, signal).unwrap();
        process::signal(child.id() as i32, Signal::SIGCONT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(remains(&name), <[String; 0]>::default());
    }
}

#[test]
fn lab_down_removes_a_lab_whose_up_was_killed() {
    let Some(name) = lab_name("killed") else { return };
    let _guard = Guard(name.clone());
    let mut child = half_way(&name);
    let busy = finish(&mut warren_lab(&name, &["down"]));
    process::signal(child.id() as i32, Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert_eq!(busy.0, 1);
    assert!(busy.2.contains("another warren-lab"), "{}", busy.2);
    assert!(!remains(&name).is_empty());
    check(&name, &["up"], 1, "is there already");
    check(&name, &["down"], 0, "is down");
    assert_eq!(remains(&name), <[String; 0]>::default());
}

#[test]
fn lab_up_explains_a_failure_and_leaves_nothing() {
    let Some(name) = lab_name("failing") else { return };
    let _guard = Guard(name.clone());
    // A namespace with that name already exists.
    namespace::create(&name.machine_namespace("n2")).unwrap();
    check(&name, &["up", "--nodes", "2", "--etcd", "1"], 1, "n2");
    assert_eq!(remains(&name), <[String; 0]>::default());
}

#[test]
fn lab_rejects_invalid_sizes_and_names() {
    let Some(name) = lab_name("sizes") else { return };
    check(&name, &["up", "--nodes", "0"], 1, "a lab has 1 to");
    check(&name, &["up", "--nodes", "2", "--etcd", "0"], 1, "fleets of one node");
    check(&name, &["up", "--nodes", "many"], 2, "--nodes");
    check(&name, &["no-such-command"], 2, "unrecognized");
    let (code, _, stderr) = finish(Command::new(WARREN_LAB).args(["--name", "No Lab", "status"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("is no name for a lab"), "{stderr}");
    assert_eq!(remains(&name), <[String; 0]>::default());
}

/// A copy of a program that unprivileged users may not run.
fn copy_for_unprivileged_users(folder: &Path, program: &Path) -> std::path::PathBuf {
    let copy = folder.join(program.file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn lab_names_missing_privileges_and_programs() {
    let Some(name) = lab_name("rootless") else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_for_unprivileged_users(folder.path(), Path::new(WARREN_LAB));
    let mut unprivileged = Command::new("setpriv");
    unprivileged.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
    let (code, _, stderr) = finish(unprivileged.args(["--name", name.as_str(), "up"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("run warren-lab as root"), "{stderr}");

    let (code, _, stderr) = finish(Command::new(&copy).args(["--name", name.as_str(), "up"]));
    assert_eq!(code, 1);
    assert!(stderr.contains("build the whole workspace first"), "{stderr}");
    assert_eq!(remains(&name), <[String; 0]>::default());
}
