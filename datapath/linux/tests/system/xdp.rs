//! Before the stack, with real packets: a client outside and a backend of another node, between whom node 1 carries what it
//! knows; the counters prove by which way.

use std::{
    fs,
    net::IpAddr,
    process::Command,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use aya::{Ebpf, programs::Xdp};
use datapath_abi::DropReason;
use datapath_linux::{CounterKind, LinuxConfig, ProgramInfo, XdpConfig, XdpMode};
use datapath_plan::{Base, BaseUnderlay, Entry, HostRouting, IpcacheValue, NodeIndex, Op, Single};

use crate::{
    outside::{CLIENT, EXTERNAL, PORT, Play, connect, snat, socket},
    services::{EndAtLast, PATIENCE, answers, ask, backend, parse},
    stage::{Cluster, Namespace, Stage, address, base, endpoint, foundations, gateway, must},
};

/// What only tests load: see `datapath/ebpf/src/test.rs`.
static TEST_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WARREN_BPF_TEST_OBJECT"));

/// Questions in one conversation, each a packet there and one back at the least.
const QUESTIONS: u64 = 20;

fn settings(mode: XdpMode, refused: &[&str]) -> LinuxConfig {
    let refused = refused.iter().map(|network| network.parse().expect("a network")).collect();
    LinuxConfig { xdp: Some(XdpConfig { mode, refused }), ..LinuxConfig::default() }
}

/// What a veth leaves to a device, which is nowhere: real ones finish checksums and cut packets.
fn finish_packets(namespace: &Namespace, device: &str) {
    namespace.run("ethtool", &["-K", device, "tx", "off"]);
}

/// The program before the stack, as node 1 lists it.
fn listed(play: &Play) -> Option<ProgramInfo> {
    let stage = play.cluster.node(1);
    let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..play.settings.clone() };
    let programs = stage.play(async || stage.open_with(config).await.programs().await.expect("programs"));
    programs.into_iter().find(|program| program.hook.starts_with("xdp"))
}

fn has_program(stage: &Stage) -> bool {
    let shown = stage.node.run("ip", &["link", "show", "under0"]);
    shown.contains("xdp") && shown.contains("prog/")
}

#[track_caller]
fn check(mode: XdpMode) {
    if Command::new("ethtool").arg("--version").output().is_err() {
        println!("skipped: needs ethtool");
        return;
    }
    let Some(mut play) = Play::new(HostRouting::Bpf, settings(mode, &[])) else { return };
    finish_packets(&play.client, "out0");
    finish_packets(&play.workloads[1], "eth0");
    // What a driver sends back comes out of a veth only where there is a program, too.
    let _at_other_end = play.cluster.bridge.enter(|| {
        let mut object = Ebpf::load(TEST_OBJECT).expect("the object loads");
        let program: &mut Xdp =
            object.program_mut("nothing_early").expect("in it").try_into().expect("of that kind");
        program.load().expect("it loads");
        program.attach("port1", aya::programs::XdpMode::Driver).expect("a veth can");
        object
    });
    let hook = if mode == XdpMode::Native { "xdp native" } else { "xdp generic" };
    let program = listed(&play).expect("it is wanted");
    assert_eq!((program.hook, program.devices), (hook, vec!["under0".to_owned()]));
    assert!(has_program(play.cluster.node(1)));

    let far = address(2, 1);
    // Until its identity is known here, each of its answers is decided anew.
    let known =
        IpcacheValue { identity: endpoint(2, 1, &play.workloads[1].path()).1.identity, node: NodeIndex(2) };
    play.apply(1, vec![Op::Put(Entry::Ipcache(IpAddr::from(far).into(), known))]);
    play.serve(&[backend(2, far)], &snat());
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        answers(scope, &play.workloads[1], far, &end);
        let before = play.counted(1, CounterKind::BeforeStack);
        let seen = (far.into(), gateway(1).into());
        let mut stream = play.client.enter(|| connect((EXTERNAL, PORT).into()));
        for _ in 0..QUESTIONS {
            let (who, from) = ask(&mut stream);
            assert_eq!((who, from.ip()), seen);
        }
        let between = play.counted(1, CounterKind::BeforeStack);
        // The first may have waited for a neighbour, or one may look unfinished.
        assert!(between - before >= 2 * QUESTIONS - 4, "tcp: {} before the stack", between - before);

        let datagrams = play.client.enter(|| socket((EXTERNAL, PORT).into()));
        for _ in 0..QUESTIONS {
            let mut buffer = [0; 64];
            datagrams.send(b"?").expect("ask");
            let length = datagrams.recv(&mut buffer).expect("an answer");
            let (who, from) = parse(&buffer[..length]);
            assert_eq!((who, from.ip()), seen);
        }
        let after = play.counted(1, CounterKind::BeforeStack);
        assert!(after - between >= 2 * QUESTIONS - 4, "udp: {} before the stack", after - between);

        // Decided again, and by another agent; then without it, by classifiers alone.
        play.apply(1, vec![Op::BumpEpochs(datapath_plan::EpochScope::All)]);
        assert_eq!(ask(&mut stream).1.ip(), seen.1);
        play.settings = LinuxConfig::default();
        assert_eq!(listed(&play), None);
        assert!(!has_program(play.cluster.node(1)));
        assert_eq!(ask(&mut stream).1.ip(), seen.1);
        let off = play.counted(1, CounterKind::BeforeStack);
        assert_eq!(ask(&mut stream).1.ip(), seen.1);
        assert_eq!(play.counted(1, CounterKind::BeforeStack), off);
    });

    // Nothing is taken from the client, until it is again.
    play.settings = settings(mode, &[&format!("{CLIENT}/32")]);
    play.apply(1, vec![underlay_op(play.cluster.node(1), "under0")]);
    play.client.enter(|| socket((EXTERNAL, PORT).into()).send(b"?").expect("send"));
    let deadline = Instant::now() + PATIENCE;
    while play.counted(1, CounterKind::Dropped(DropReason::DroppedNetwork)) == 0 {
        assert!(Instant::now() < deadline, "it was let in");
        thread::sleep(Duration::from_millis(20));
    }
    play.settings = settings(mode, &[]);
    play.apply(1, vec![]);
    assert!(play.client.pings(Cluster::underlay(1)));
}

/// What puts programs to work on a device as the underlay's.
fn underlay_op(stage: &Stage, device: &str) -> Op {
    let index = stage.node.run("ip", &["-o", "link", "show", device]);
    let ifindex = index.split(':').next().expect("an index").parse().expect("a number");
    let underlay = BaseUnderlay { ifindex, address: Cluster::underlay(1).into(), mtu_bytes: 1500 };
    Op::Put(Entry::Base(Single, Base { underlay, ..base(1) }))
}

#[test]
fn known_flows_are_carried_before_the_stack() {
    check(XdpMode::Generic);
}

#[test]
fn known_flows_are_carried_by_the_driver() {
    check(XdpMode::Native);
}

/// What an agent finds to do when it starts with another setting; afterwards nothing.
#[test]
fn another_setting_is_a_difference_until_it_is_applied() {
    let Some(cluster) = Cluster::new(1) else { return };
    let stage = cluster.node(1);
    let mut ops = foundations(1);
    ops[0] = underlay_op(stage, "under0");
    stage.play(async || {
        must(&mut stage.open().await, ops.clone()).await;
        for mode in [XdpMode::Generic, XdpMode::Native, XdpMode::Generic] {
            let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..settings(mode, &[]) };
            let mut datapath = stage.open_with(config.clone()).await;
            let observed = datapath.observe().await.expect("observe");
            assert_eq!(observed.broken, ["under0: program xdp_entry is not attached"], "{mode:?}");
            assert_eq!(observed.tables.base, None);
            must(&mut datapath, vec![ops[0].clone()]).await;
            assert!(has_program(stage));
            let applied = datapath.observe().await.expect("observe");
            assert!(applied.broken.is_empty() && applied.tables.base.is_some(), "{applied:?}");
            drop(datapath);
            assert_eq!(stage.open_with(config).await.observe().await.expect("observe"), applied);
        }
        let mut datapath = stage.open().await;
        assert_eq!(datapath.observe().await.expect("observe").broken, [""; 0]);
        assert!(!has_program(stage));
    });
}

#[test]
fn a_driver_that_cannot_leaves_all_to_classifiers() {
    let Some(stage) = Stage::new() else { return };
    stage.node.run("ip", &["link", "add", "br9", "type", "bridge"]);
    let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..settings(XdpMode::Native, &[]) };
    stage.play(async || {
        let mut datapath = stage.open_with(config).await;
        must(&mut datapath, vec![underlay_op(&stage, "br9")]).await;
        // That is no damage: nothing can mend it.
        assert_eq!(datapath.observe().await.expect("observe").broken, [""; 0]);
        for program in datapath.programs().await.expect("programs") {
            let expected: &[&str] = match program.name.as_str() {
                "xdp_entry" => &[],
                "from_netdev" | "to_netdev" => &["br9"],
                _ => continue,
            };
            assert_eq!(program.devices, expected, "{}", program.name);
        }
    });
    let links = fs::read_dir(stage.pin_root.join("links")).expect("the folder");
    assert!(links.flatten().all(|link| !link.file_name().to_string_lossy().starts_with("xdp")));
}
