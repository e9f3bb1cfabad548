//! Faults affect machines and packets as described, and healing undoes them. No agent runs here.

use std::{net::IpAddr, time::Duration};

use chaos_lab::{
    fault::{Fault, Way},
    machines,
    probe::{Cause, Ping, Report},
    process,
    spec::underlay_address,
    wait,
};

use crate::support::{SOON, TestLab, finish};

fn way(lab: &TestLab, from: &str, to: &str, one_way: bool) -> Way {
    let set = |text| machines::parse(lab.spec(), text).unwrap();
    Way { from: set(from), to: set(to), one_way }
}

/// Pings over the underlay during a fault and after it was healed; after healing no ping may be lost.
fn check(lab: &TestLab, from: &str, to: &str, fault: &Fault, seen: impl Fn(&Report) -> bool) {
    let address: IpAddr = underlay_address(to).into();
    let inside = lab.name().machine_namespace(from);
    // A flapping link must have been down and up.
    let count = if let Fault::Flap { period, .. } = fault { 2 * period.as_millis() as u64 } else { 1_000 };
    let ping = || {
        let ping = Ping::new(&inside, address).start().unwrap();
        wait::until("a thousand pings", SOON, || {
            anyhow::ensure!(ping.report().sent >= count, "fewer");
            Ok(())
        })
        .unwrap();
        ping.stop().unwrap()
    };
    let id = lab.inflict(fault.clone()).unwrap();
    assert_eq!(lab.inflict(fault.clone()).unwrap(), id, "twice is once");
    assert_eq!(lab.faults().unwrap().len(), 1);
    let report = ping();
    assert!(seen(&report), "{fault}, {from} to {to}: {report:?}");
    assert_eq!(lab.heal(id).unwrap().fault, *fault);
    // A node that was cut off asks for its neighbour once a second, and queues only a few packets for it.
    wait::until("an answer", SOON, || chaos_lab::probe::ping(&inside, address, 1)).unwrap();
    let after = ping();
    assert_eq!(after.lost(), 0, "{fault}, healed: {after:?}");
    assert!(lab.faults().unwrap().is_empty());
}

#[test]
fn faults_affect_only_the_named_packets() {
    let Some(lab) = TestLab::made("faults", 3, 1) else { return };
    let everything = |report: &Report| report.arrived == 0 && report.lost() == report.sent;
    let nothing = |report: &Report| report.lost() == 0;
    let cut = |from, to, one_way| Fault::Cut { way: way(&lab, from, to, one_way) };
    check(&lab, "n1", "n2", &cut("n1", "n2", false), everything);
    check(&lab, "n2", "n1", &cut("n1", "n2", true), everything);
    check(&lab, "n1", "n3", &cut("n1", "n2,etcd", false), nothing);
    check(&lab, "n3", "n2", &cut("n2", "all", false), everything);

    let loss = Fault::Loss { way: way(&lab, "n1", "n2", true), per_mille: 300 };
    check(&lab, "n1", "n2", &loss, |report| {
        let share = report.lost() as f64 / report.sent as f64;
        (0.2..0.4).contains(&share)
    });
    let delay = Fault::Delay { way: way(&lab, "n1", "n2", false), delay: Duration::from_millis(20) };
    check(&lab, "n1", "n2", &delay, |report| {
        report.lost() == 0 && report.latency.unwrap().median >= Duration::from_millis(40)
    });
    // The period is twice the gap up to which the report merges two troubles.
    let flap = Fault::Flap { way: way(&lab, "n1", "n2", false), period: Duration::from_millis(1_000) };
    check(&lab, "n1", "n2", &flap, |report| {
        report.arrived > 0 && report.troubles.iter().filter(|it| it.cause == Cause::Lost).count() > 1
    });
}

#[test]
fn faults_are_set_by_the_command_line() {
    let Some(lab) = TestLab::made("faultcli", 2, 1) else { return };
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let mut command = std::process::Command::new(crate::support::WARREN_LAB);
        command.args(["--name", lab.name().as_str(), "fault"]).args(arguments);
        let (actual, stdout, stderr) = finish(&mut command);
        assert_eq!(actual, code, "{arguments:?}: {stdout}{stderr}");
        assert!(format!("{stdout}{stderr}").contains(expected), "{arguments:?}: {stdout}{stderr}");
    };
    check(&["list"], 0, "no fault stands");
    check(&["heal"], 0, "nothing to heal");
    check(&["heal", "7"], 1, "no fault 7 stands");
    check(&["cut", "n1", "n9"], 1, "it has n1, n2, e1");
    check(&["cut", "n1", "n1"], 1, "name two machines");
    check(&["loss", "n1", "n2", "10"], 2, "write 10%");
    check(&["pause", "n1"], 1, "nothing runs on n1");
    check(&["list"], 0, "no fault stands");
    check(&["cut", "nodes", "etcd", "--one-way"], 0, "fault 1: cut n1,n2 -> e1");
    check(&["address", "n2", "172.30.9.2"], 0, "fault 2: n2 has address 172.30.9.2");
    check(&["list", "-o", "json"], 0, "\"kind\": \"cut\"");
    let ping = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        chaos_lab::probe::ping(&lab.name().machine_namespace("n1"), address, 1).is_ok()
    };
    assert_eq!(["172.30.9.2", "172.30.1.2"].map(ping), [true, false]);
    check(&["heal"], 0, "healed 1");
    assert_eq!(["172.30.9.2", "172.30.1.2"].map(ping), [false, true]);
}

#[test]
fn faults_pause_wipe_and_restore_etcd() {
    let Some(lab) = TestLab::made("faultetcd", 1, 3) else { return };
    let members = machines::parse(lab.spec(), "etcd").unwrap();
    lab.start_machines(&members).unwrap();
    let etcdctl = |arguments: &[&str]| {
        let flags = ["--endpoints", &lab.spec().etcd_endpoints().join(","), "--command-timeout=2s"];
        process::run(&lab.name().machine_namespace("n1"), "etcdctl", &[&flags, arguments].concat())
    };
    let soon = |what: &str, arguments: &[&str]| wait::until(what, SOON, || etcdctl(arguments)).unwrap();
    let keys = || soon("etcd to answer", &["get", "--prefix", "--keys-only", "/"]);
    let cluster = || {
        let text = soon("etcd to answer", &["get", "/", "-w", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["header"]["cluster_id"].as_u64().unwrap()
    };
    let backup = lab.name().folder().join("backup");

    soon("a write", &["put", "/before", "1"]);
    lab.etcd_backup(&backup).unwrap();
    soon("a write", &["put", "/after", "1"]);
    let first = cluster();

    let majority = machines::parse(lab.spec(), "majority").unwrap();
    let faults: Vec<Fault> =
        majority.iter().map(|member| Fault::Paused { machine: member.clone() }).collect();
    for fault in faults {
        lab.inflict(fault).unwrap();
    }
    assert!(etcdctl(&["put", "/paused", "1"]).is_err(), "a minority takes no writes");
    lab.heal_all().unwrap();
    assert!(keys().contains("/after"));

    lab.etcd_restore(&backup, true).unwrap();
    assert_eq!(keys().trim(), "/before");
    let second = cluster();
    assert_ne!(first, second);
    lab.etcd_wipe(false).unwrap();
    assert_eq!(keys().trim(), "");
    assert_eq!(cluster(), second, "etcd makes the id of its configuration");
}
