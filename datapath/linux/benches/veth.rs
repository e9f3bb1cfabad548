//! A client's packets to a backend outside the fleet, through a node that translates both sides: routed only, by an
//! equivalent pair of iptables rules, by the classifiers, and before the stack, in turn in one run:
//! `cargo bench -p datapath-linux --bench veth`. Compare within a run only.
//!
//! Frames come from a test run with live frames, as they come from a driver, and end at the other end of the node's veth. A
//! kernel thread of the node's interface does all of the node's work, on a CPU that the sender does not use: what it takes of
//! that CPU for a packet is the figure that others on the machine, and the sender's own pace, disturb least.

#[expect(dead_code, reason = "the tests' stage has more than benches need")]
#[path = "../tests/system/stage.rs"]
mod stage;

use std::{
    fs,
    net::Ipv4Addr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, TestRun,
    maps::Array,
    programs::{TestRunAttrs, TestRunOptions, Xdp, XdpMode as Attach},
};
use datapath_linux::{LinuxConfig, XdpConfig, XdpMode};
use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, Base, BaseUnderlay, Entry, Frontend, FrontendKind,
    FrontendValue, Op, Protocol, ServiceId, ServiceMode, ServiceValue, Single,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::stage::{Cluster, Namespace, Stage, base, base_ops, must, run};

static TEST_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WARREN_BPF_TEST_OBJECT"));

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const BACKEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const FRONTEND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40_000;
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const ROUNDS: usize = 9;
/// Frames of a burst: many, since a test run takes its time to begin and to end. And those that go to the interface at once:
/// as many as one poll of it takes.
const FRAMES: u32 = 500_000;
const BATCH: u32 = 64;
const FRAME_BYTES: usize = 64;
/// `struct xdp_md`: where it has `data_end` and `ingress_ifindex`, and its size.
const DATA_END_OFFSET: usize = 4;
const INGRESS_OFFSET: usize = 12;
const XDP_MD_BYTES: usize = 24;

/// Whose work is measured, and from where frames come.
struct Node<'a> {
    inside: &'a Namespace,
    outside: &'a Namespace,
    /// The node's end of the cable, and the other one.
    device: String,
    other: String,
}

fn main() {
    for program in ["iptables", "ethtool"] {
        if Command::new(program).arg("--version").output().is_err() {
            return println!("skipped: needs {program}");
        }
    }
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        return println!("skipped: needs two CPUs");
    }
    let Some(stage) = Stage::new() else { return };
    let (routing, translating, outside) =
        (Namespace::new("routing"), Namespace::new("iptables"), Namespace::new("outside"));
    let nodes = [&routing, &translating, &stage.node];
    let nodes: Vec<Node> = (0..).zip(nodes).map(|(index, inside)| cable(inside, &outside, index)).collect();
    let [routing, translating, ours] = &nodes[..] else { unreachable!("three were made") };
    for line in [
        format!(
            "-A PREROUTING -d {FRONTEND} -p udp --dport {PORT} -j DNAT --to-destination {BACKEND}:{BACKEND_PORT}"
        ),
        format!("-A POSTROUTING -d {BACKEND} -p udp --dport {BACKEND_PORT} -j MASQUERADE"),
    ] {
        translating.inside.run("iptables", &format!("-t nat {line}").split(' ').collect::<Vec<_>>());
    }
    let mut object = Ebpf::load(TEST_OBJECT).expect("the object loads");
    // Without a program at the other end a veth loses what a driver's program sends back.
    outside.enter(|| {
        let end = program(&mut object, "end");
        for node in &nodes {
            end.attach(&node.other, Attach::Driver).expect("a veth can");
        }
    });

    let xdp = |mode| Some(XdpConfig { mode, dropped: Vec::new() });
    let ways = [
        ("routed only", routing, None, (BACKEND, BACKEND_PORT)),
        ("iptables", translating, None, (FRONTEND, PORT)),
        ("classifiers", ours, Some(None), (FRONTEND, PORT)),
        ("xdp generic", ours, Some(xdp(XdpMode::Generic)), (FRONTEND, PORT)),
        ("xdp native", ours, Some(xdp(XdpMode::Native)), (FRONTEND, PORT)),
    ];
    let mut found = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for ((_, node, settings, to), found) in ways.iter().zip(&mut found) {
            if let Some(xdp) = settings {
                furnish(&stage, node, xdp.clone());
            }
            found.push(burst(&mut object, node, *to));
        }
    }
    println!("median of {ROUNDS} bursts (least to most)");
    println!("{:<12} {:>28} {:>34}", "", "ns of a CPU for a packet", "packets a second");
    for ((name, ..), found) in ways.into_iter().zip(found) {
        let column = |value: fn(&Burst) -> u64| {
            let mut values: Vec<_> = found.iter().map(value).collect();
            values.sort_unstable();
            format!("{} ({} to {})", values[ROUNDS / 2], values[0], values[ROUNDS - 1])
        };
        println!("{name:<12} {:>28} {:>34}", column(|burst| burst.cpu_ns), column(|burst| burst.rate));
    }
}

fn ip(namespace: &Namespace, line: &str) {
    namespace.run("ip", &line.split(' ').collect::<Vec<_>>());
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A node's cable, both ends worked at by kernel threads; the node knows who is there, and forwards.
fn cable<'a>(inside: &'a Namespace, outside: &'a Namespace, index: u32) -> Node<'a> {
    // Threads are named after devices: no other run's.
    let (device, other) = (format!("n{}x{index}", std::process::id()), format!("out{index}"));
    ip(outside, &format!("link add {other} type veth peer name {device} netns {}", inside.name));
    for (namespace, name, mac) in [(inside, &device, NODE_MAC), (outside, &other, OTHER_MAC)] {
        // Receive offload: a veth then works frame after frame like a driver. It wants a sender without offloads.
        namespace.run("ethtool", &["-K", name, "tx", "off", "gro", "on"]);
        ip(namespace, &format!("link set {name} address {} up", colons(mac)));
        let threads = format!("echo 1 > /sys/class/net/{name}/threaded");
        run("ip", &["netns", "exec", &namespace.name, "sh", "-c", &threads]);
    }
    ip(inside, &format!("addr add {}/24 dev {device}", Cluster::underlay(1)));
    for address in [CLIENT, BACKEND] {
        ip(inside, &format!("neigh add {address} lladdr {} dev {device} nud permanent", colons(OTHER_MAC)));
    }
    inside.enter(|| {
        let set =
            |name: &str, value| fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect("a setting");
        set("ip_forward", "1");
        // Here the client is on the node's own network, and would be told to go to the backend by itself.
        set("conf/all/send_redirects", "0");
        set(&format!("conf/{device}/send_redirects"), "0");
    });
    Node { inside, outside, device, other }
}

/// Makes the stage's node serve so.
fn furnish(stage: &Stage, node: &Node, xdp: Option<XdpConfig>) {
    let ifindex = node.inside.enter(|| index_of(&node.device));
    let underlay = BaseUnderlay { ifindex, address: Cluster::underlay(1).into(), mtu_bytes: 1500 };
    let mut ops = base_ops(1);
    ops[0] = Op::Put(Entry::Base(Single, Base { underlay, ..base(1) }));
    let (service, id) = (ServiceId(1), BackendId(1));
    let (address, port) = (BACKEND.into(), BACKEND_PORT);
    ops.push(Op::Put(Entry::Backend(
        id,
        BackendValue { service, address, port, weight: 1, state: BackendState::Active },
    )));
    let value = ServiceValue {
        algorithm: Algorithm::Maglev,
        affinity_seconds: 0,
        mode: ServiceMode::Snat,
        source_ranges: Vec::new(),
        members: vec![id],
    };
    ops.push(Op::Put(Entry::Service(service, value)));
    let frontend = Frontend { address: FRONTEND.into(), port: PORT, protocol: Protocol::Udp };
    ops.push(Op::Put(Entry::Frontend(frontend, FrontendValue { service, kind: FrontendKind::External })));
    let config = LinuxConfig { xdp, ..stage.config() };
    stage.block_on(async || must(&mut stage.open_with(config).await, ops).await);
}

/// What came of more packets than the node can take.
#[derive(Clone, Copy)]
struct Burst {
    /// Nanoseconds of its CPU that it took for one.
    cpu_ns: u64,
    /// Those that it took in a second, of the CPU that others use as well.
    rate: u64,
}

fn burst(object: &mut Ebpf, node: &Node, to: (Ipv4Addr, u16)) -> Burst {
    let thread = thread_of(&node.device);
    pin(thread, 1);
    pin(thread_of(&node.other), 0);
    let map = object.map_mut("TEST_FRAME").expect("in it");
    let words = frame(to)
        .chunks(8)
        .map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")))
        .collect::<Vec<_>>();
    let words: [u64; FRAME_BYTES / 8] = words.try_into().expect("as many");
    Array::<_, [u64; FRAME_BYTES / 8]>::try_from(map).expect("an array").set(0, words, 0).expect("an entry");
    let sender = program(object, "send");
    node.outside.enter(|| {
        pin(0, 0);
        let ifindex = index_of(&node.other);
        // The flow is known before it counts.
        for _ in 0..20 {
            send(sender, ifindex, 1);
            thread::sleep(Duration::from_millis(1));
        }
        let arrived = received(&node.other);
        let (taken, worked) = (node.inside.enter(|| received(&node.device)), cpu_time_ns(thread));
        let begin = Instant::now();
        send(sender, ifindex, FRAMES);
        let elapsed = begin.elapsed();
        let taken = node.inside.enter(|| received(&node.device)) - taken;
        let worked = cpu_time_ns(thread) - worked;
        assert!(received(&node.other) - arrived > 1_000, "nothing comes through {}", node.device);
        Burst { cpu_ns: worked / taken, rate: (taken as f64 / elapsed.as_secs_f64()) as u64 }
    })
}

/// A program of the test object, loaded.
fn program<'a>(object: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    let program: &mut Xdp = object.program_mut(name).expect("in it").try_into().expect("of that kind");
    if program.fd().is_err() {
        program.load().expect("it loads");
    }
    program
}

/// Sends the frame so many times. What the other end's queue does not take is lost, as on a wire.
fn send(sender: &Xdp, ifindex: u32, times: u32) {
    let mut context = [0; XDP_MD_BYTES];
    context[DATA_END_OFFSET..][..4].copy_from_slice(&(FRAME_BYTES as u32).to_ne_bytes());
    context[INGRESS_OFFSET..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    let mut options = TestRunOptions::new();
    options.data_in = Some(&[0; FRAME_BYTES]);
    options.ctx_in = Some(&context);
    options.repeat = times;
    options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
    sender.test_run(options).expect("BPF_PROG_TEST_RUN with live frames");
}

/// A UDP packet, as the client sends it to its router.
fn frame((address, port): (Ipv4Addr, u16)) -> Vec<u8> {
    let mut bytes =
        [&NODE_MAC[..], &OTHER_MAC, &[8, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0]].concat();
    bytes.extend(CLIENT.octets());
    bytes.extend(address.octets());
    let words = bytes[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    for word in [CLIENT_PORT, port, 30, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend([0; 22]);
    bytes
}

fn index_of(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).expect("the device is there")
}

/// Packets that a device of this namespace has taken in: what its queue did not hold is not among them.
fn received(device: &str) -> u64 {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").expect("statistics");
    let line =
        devices.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")).map(str::to_owned));
    line.expect("the device").split_whitespace().nth(1).expect("a column").parse().expect("a number")
}

/// The kernel thread that does a device's work.
fn thread_of(device: &str) -> i32 {
    let name = format!("napi/{device}-");
    let threads = fs::read_dir("/proc").expect("/proc").flatten();
    let mut ids = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it =
        |id: &i32| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm.starts_with(&name));
    ids.find(is_it).expect("the device has a thread")
}

/// What a thread has had of a CPU.
fn cpu_time_ns(thread: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).expect("the kernel tells");
    text.split(' ').next().expect("a column").parse().expect("a number")
}

/// Keeps a thread (0: this one) on a CPU.
fn pin(thread: i32, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("the kernel has as many");
    sched_setaffinity(Pid::from_raw(thread), &set).expect("it may be moved");
}
