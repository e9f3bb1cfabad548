//! XDP with real packets: node 1 forwards between an external client and a backend on node 2, and the counters show
//! which of the packets XDP forwarded.

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
    nodeport::{CLIENT, EXTERNAL, PORT, Topology, snat},
    services::{
        backend,
        echo::{PATIENCE, StopOnDrop, connect, parse, request, serve_echo, udp_socket},
    },
    stage::{Cluster, Namespace, Stage, address, base, base_ops, endpoint, gateway, must},
};

/// Programs that only tests load: `datapath/ebpf/src/test.rs`.
static TEST_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WARREN_BPF_TEST_OBJECT"));

/// Requests of one conversation; each is at least one packet in each direction.
const REQUESTS: u64 = 20;

fn settings(mode: XdpMode, dropped: &[&str]) -> LinuxConfig {
    let dropped = dropped.iter().map(|network| network.parse().expect("a network")).collect();
    LinuxConfig { xdp: Some(XdpConfig { mode, dropped }), ..LinuxConfig::default() }
}

/// Turns off transmit offloads: no device behind a veth completes checksums or segments packets.
fn disable_tx_offload(namespace: &Namespace, device: &str) {
    namespace.run("ethtool", &["-K", device, "tx", "off"]);
}

/// The XDP program, as node 1 lists it.
fn listed(topology: &Topology) -> Option<ProgramInfo> {
    let stage = topology.cluster.node(1);
    let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..topology.settings.clone() };
    let programs = stage.block_on(async || stage.open_with(config).await.programs().await.expect("programs"));
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
    let Some(mut topology) = Topology::new(HostRouting::Bpf, settings(mode, &[])) else { return };
    disable_tx_offload(&topology.client, "out0");
    disable_tx_offload(&topology.workloads[1], "eth0");
    // XDP_TX on a veth needs an XDP program at the peer as well.
    let _peer_program = topology.cluster.bridge.enter(|| {
        let mut object = Ebpf::load(TEST_OBJECT).expect("the object loads");
        let program: &mut Xdp =
            object.program_mut("nothing_early").expect("in it").try_into().expect("of that kind");
        program.load().expect("it loads");
        program.attach("port1", aya::programs::XdpMode::Driver).expect("a veth can");
        object
    });
    let hook = if mode == XdpMode::Native { "xdp native" } else { "xdp generic" };
    let program = listed(&topology).expect("XDP is configured");
    assert_eq!((program.hook, program.devices), (hook, vec!["under0".to_owned()]));
    assert!(has_program(topology.cluster.node(1)));

    let remote = address(2, 1);
    // As long as node 1 does not know the backend's identity, it decides each response again.
    let known = IpcacheValue {
        identity: endpoint(2, 1, &topology.workloads[1].path()).1.identity,
        node: NodeIndex(2),
    };
    topology.apply(1, vec![Op::Put(Entry::Ipcache(IpAddr::from(remote).into(), known))]);
    topology.serve(&[backend(2, remote)], &snat());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        serve_echo(scope, &topology.workloads[1], remote, &stop);
        let before = topology.counted(1, CounterKind::ForwardedByXdp);
        let seen = (remote.into(), gateway(1).into());
        let mut stream = topology.client.enter(|| connect((EXTERNAL, PORT).into()));
        for _ in 0..REQUESTS {
            let (who, from) = request(&mut stream);
            assert_eq!((who, from.ip()), seen);
        }
        let between = topology.counted(1, CounterKind::ForwardedByXdp);
        // The first packet may wait for a neighbour, and one may have a partial checksum.
        assert!(between - before >= 2 * REQUESTS - 4, "TCP: {} by XDP", between - before);

        let datagrams = topology.client.enter(|| udp_socket((EXTERNAL, PORT).into()));
        for _ in 0..REQUESTS {
            let mut buffer = [0; 64];
            datagrams.send(b"?").expect("send a request");
            let length = datagrams.recv(&mut buffer).expect("a response");
            let (who, from) = parse(&buffer[..length]);
            assert_eq!((who, from.ip()), seen);
        }
        let after = topology.counted(1, CounterKind::ForwardedByXdp);
        assert!(after - between >= 2 * REQUESTS - 4, "UDP: {} by XDP", after - between);

        // The flow is decided again by another agent; then, without XDP, by classifiers alone.
        topology.apply(1, vec![Op::BumpEpochs(datapath_plan::EpochScope::All)]);
        assert_eq!(request(&mut stream).1.ip(), seen.1);
        topology.settings = LinuxConfig::default();
        assert_eq!(listed(&topology), None);
        assert!(!has_program(topology.cluster.node(1)));
        assert_eq!(request(&mut stream).1.ip(), seen.1);
        let off = topology.counted(1, CounterKind::ForwardedByXdp);
        assert_eq!(request(&mut stream).1.ip(), seen.1);
        assert_eq!(topology.counted(1, CounterKind::ForwardedByXdp), off);
    });

    // The client's network is refused, then admitted again.
    topology.settings = settings(mode, &[&format!("{CLIENT}/32")]);
    topology.apply(1, vec![underlay_op(topology.cluster.node(1), "under0")]);
    topology.client.enter(|| udp_socket((EXTERNAL, PORT).into()).send(b"?").expect("send"));
    let deadline = Instant::now() + PATIENCE;
    while topology.counted(1, CounterKind::Dropped(DropReason::DroppedNetwork)) == 0 {
        assert!(Instant::now() < deadline, "no packet was dropped");
        thread::sleep(Duration::from_millis(20));
    }
    topology.settings = settings(mode, &[]);
    topology.apply(1, vec![]);
    assert!(topology.client.pings(Cluster::underlay(1)));
}

/// The operation that attaches the underlay programs to a device.
fn underlay_op(stage: &Stage, device: &str) -> Op {
    let index = stage.node.run("ip", &["-o", "link", "show", device]);
    let ifindex = index.split(':').next().expect("an index").parse().expect("a number");
    let underlay = BaseUnderlay { ifindex, address: Cluster::underlay(1).into(), mtu_bytes: 1500 };
    Op::Put(Entry::Base(Single, Base { underlay, ..base(1) }))
}

#[test]
fn xdp_generic_forwards_established_flows() {
    check(XdpMode::Generic);
}

#[test]
fn xdp_native_forwards_established_flows() {
    check(XdpMode::Native);
}

/// An agent that starts with another mode observes a difference, until it has applied the base.
#[test]
fn xdp_mode_change_is_observed_until_applied() {
    let Some(cluster) = Cluster::new(1) else { return };
    let stage = cluster.node(1);
    let mut ops = base_ops(1);
    ops[0] = underlay_op(stage, "under0");
    stage.block_on(async || {
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
fn xdp_without_driver_support_leaves_packets_to_classifiers() {
    let Some(stage) = Stage::new() else { return };
    stage.node.run("ip", &["link", "add", "br9", "type", "bridge"]);
    let config = LinuxConfig { pin_root: stage.pin_root.clone(), ..settings(XdpMode::Native, &[]) };
    stage.block_on(async || {
        let mut datapath = stage.open_with(config).await;
        must(&mut datapath, vec![underlay_op(&stage, "br9")]).await;
        // The missing program is not reported as broken: nothing could repair it.
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
