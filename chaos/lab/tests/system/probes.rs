//! The probes themselves, between two namespaces and without an agent: a clean line is reported as clean, and
//! disturbances are reported as they happened.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use chaos_lab::{
    Endpoint, LabName, namespace,
    probe::{Cause, Connections, Datagrams, Ping, Report, Running, Streams},
    process, take_down,
};

use nix::sched::CpuSet;

use crate::support::{SOON, finish, lab_name};

/// Two namespaces connected by a veth pair, deleted when the test ends.
struct Line {
    name: LabName,
    near: Endpoint,
    far: Endpoint,
}

impl Line {
    fn new(test: &str) -> Option<Self> {
        let name = lab_name(test)?;
        let end = |node: &str, last: u8| Endpoint {
            node: node.to_owned(),
            name: "end".to_owned(),
            namespace: name.endpoint_namespace(node, "end"),
            address: [192, 0, 2, last].into(),
            identity: 0,
            labels: String::new(),
        };
        let line = Self { near: end("near", 1), far: end("far", 2), name: name.clone() };
        let (near, far) = (&line.near.namespace, &line.far.namespace);
        namespace::create(near).unwrap();
        namespace::create(far).unwrap();
        let cable = ["-n", near, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far];
        namespace::ip(cable).unwrap();
        for end in [&line.near, &line.far] {
            let address = format!("{}/24", end.address);
            namespace::ip(["-n", &end.namespace, "address", "add", &address, "dev", "eth0"]).unwrap();
            namespace::ip(["-n", &end.namespace, "link", "set", "eth0", "up"]).unwrap();
        }
        Some(line)
    }

    /// Sets the nftables rules of the far end for incoming packets.
    fn far_end(&self, rules: &str) {
        let mut nft = Command::new("nft");
        let script = format!(
            "flush ruleset\ntable inet line {{ chain in {{ type filter hook input priority 0\n {rules}\n}}\n}}"
        );
        process::enter(&mut nft, &self.far.namespace, None).unwrap();
        let (code, _, error) = finish(nft.arg(script).stdin(Stdio::null()));
        assert_eq!(code, 0, "{error}");
    }

    fn everything(&self) -> [Running; 4] {
        let (from, to) = (self.near.clone(), self.far.clone());
        let interval = Duration::from_millis(10);
        [
            Ping::new(&from.namespace, to.address).start().unwrap(),
            Datagrams { from: from.clone(), to: to.clone(), interval }.start().unwrap(),
            Streams { stall: Duration::from_millis(300), ..Streams::new(&from, &to, 10) }.start().unwrap(),
            Connections { from, to, interval }.start().unwrap(),
        ]
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let result = take_down(&self.name);
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

fn more(probes: &[Running; 4]) {
    for (probe, count) in probes.iter().zip([100, 30, 100_000, 30]) {
        probe.wait_for_more(count, SOON).unwrap();
    }
}

fn stop(probes: [Running; 4], origin: Instant) -> [Report; 4] {
    probes.map(|probe| {
        let report = probe.stop().unwrap();
        eprintln!("{} {} of {}: {:?}", report.unit, report.arrived, report.sent, report.describe(origin));
        report
    })
}

#[test]
fn probes_report_a_clean_line_as_clean() {
    let Some(line) = Line::new("clean") else { return };
    let origin = Instant::now();
    let probes = line.everything();
    more(&probes);
    for report in stop(probes, origin) {
        assert_eq!(report.losses().count(), 0, "{:?}", report.describe(origin));
        assert_eq!(report.sent, report.arrived, "{}", report.unit);
    }
}

#[test]
fn probes_report_a_silence_and_its_length() {
    let Some(line) = Line::new("silence") else { return };
    let origin = Instant::now();
    let probes = line.everything();
    more(&probes);
    let begin = Instant::now();
    line.far_end("drop");
    let cut = Instant::now();
    // The silence is the subject of the test: it must outlast the streams' limit and a first retransmission.
    std::thread::sleep(Duration::from_millis(1_500));
    let heal = Instant::now();
    line.far_end("accept");
    let end = Instant::now();
    more(&probes);
    let [pings, datagrams, streams, connections] = stop(probes, origin);

    for (report, causes) in [(&pings, [Cause::Lost]), (&datagrams, [Cause::Lost])] {
        let words = report.describe(origin);
        assert!(report.losses().all(|trouble| causes.contains(&trouble.cause)), "{words:?}");
        assert_eq!(report.losses().count(), 1, "one silence: {words:?}");
        let trouble = report.losses().next().unwrap();
        assert!(begin <= trouble.begin && trouble.end <= end, "inside the silence: {words:?}");
        let slack = report.longest_pause + Duration::from_millis(20);
        assert!(trouble.begin <= cut + slack && trouble.end + slack >= heal, "all of it: {words:?}");
        assert_eq!(report.arrived + report.lost(), report.sent);
    }
    let words = streams.describe(origin);
    assert_eq!((streams.lost(), streams.sent), (0, streams.arrived), "TCP repairs it: {words:?}");
    assert_eq!(streams.troubles[0].cause, Cause::Stalled, "{words:?}");
    assert!(streams.retransmissions > Some(0), "{words:?}");
    let slowest = connections.latency.unwrap().max;
    assert!(connections.lost() == 0 && slowest > Duration::from_millis(900), "slow, not lost: {slowest:?}");
}

#[test]
fn probes_report_a_reset() {
    let Some(line) = Line::new("reset") else { return };
    let origin = Instant::now();
    let probes = line.everything();
    more(&probes);
    let begin = Instant::now();
    line.far_end("meta l4proto tcp reject with tcp reset");
    for probe in &probes[2..] {
        chaos_lab::wait::until("losses", SOON, || {
            anyhow::ensure!(probe.report().lost() > 0, "none");
            Ok(())
        })
        .unwrap();
    }
    line.far_end("accept");
    let [pings, datagrams, streams, connections] = stop(probes, origin);
    assert_eq!((pings.lost(), datagrams.lost()), (0, 0));
    let cause_of = |report: &Report| report.losses().map(|trouble| trouble.cause).collect::<Vec<_>>();
    assert!(cause_of(&streams).contains(&Cause::Reset), "{:?}", streams.describe(origin));
    assert!(streams.losses().all(|trouble| trouble.begin >= begin), "{:?}", streams.describe(origin));
    assert!(cause_of(&connections).contains(&Cause::Refused), "{:?}", connections.describe(origin));
}

/// The kernel sends ping replies of all namespaces through one socket per CPU, and replies that wait for a neighbour
/// fill it: an unreachable machine must not block the replies to others.
#[test]
fn ping_replies_that_wait_for_a_neighbour_do_not_block_others() {
    let Some(line) = Line::new("waiting") else { return };
    let bridge = line.name.underlay_namespace();
    namespace::create(&bridge).unwrap();
    namespace::create_bridge(&bridge, "br0").unwrap();
    let machine = |name: &str, last: u8| {
        let inside = line.name.machine_namespace(name);
        namespace::create(&inside).unwrap();
        let mac = [2, 0, 0, 0, 1, last];
        let address = format!("198.51.100.{last}/24");
        namespace::plug(&bridge, "br0", name, &inside, mac, &address).unwrap();
        inside
    };
    let mute = machine("mute", 1);
    machine("asked", 2);
    // The machine sends ARP requests but answers none.
    namespace::inside(&mute, || Ok(fs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "8")?)).unwrap();
    let known =
        ["-n", &mute, "neigh", "replace", "198.51.100.2", "lladdr", "02:00:00:00:01:02", "dev", "eth0"];
    namespace::ip(known).unwrap();
    // Everything runs on one CPU: threads and processes inherit the affinity.
    let me = nix::unistd::Pid::from_raw(0);
    let allowed = nix::sched::sched_getaffinity(me).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    nix::sched::sched_setaffinity(me, &one).unwrap();
    let unheard = Ping::new(&mute, "198.51.100.2".parse().unwrap()).start().unwrap();
    chaos_lab::wait::until("more pings than the queue holds", SOON, || {
        anyhow::ensure!(unheard.report().sent >= 500, "too few");
        Ok(())
    })
    .unwrap();
    let heard = Ping::new(&line.near.namespace, line.far.address).start().unwrap();
    heard.wait_for_more(1_000, SOON).unwrap();
    unheard.stop().unwrap();
    let report = heard.stop().unwrap();
    assert_eq!(report.sent, report.arrived, "{:?}", report.describe(Instant::now()));
}
