//! Before the stack: what it carries is what the classifiers would have made of the same packet, counts included; all else
//! goes up as it came.

use std::{collections::BTreeMap, process::Command};

use datapath_abi::{
    BACKEND_ELSEWHERE, COUNTED_BEFORE_STACK, Direction::Ingress, DropReason, FlowAction, FlowEntry, FlowKey,
    LpmKey, MacBytes, NodeConfig, ServiceEntry, SourceKind, V4, counter_slot, epoch_shard_v4, flow_flags,
    map_name, node_flags, service_flags,
};
use datapath_linux::object::Program::{self, FromNetdev, FromOverlay};

use crate::{
    check::furnished,
    frame::{Frame, ICMP, TCP, UDP, checksum},
    kernel::{Kernel, Tunnel},
    namespace::{self, UNDERLAY_IFINDEX},
    service::{Backend, PORT, SERVICE, VIP, backend, raise, serve, to_backend},
    world::*,
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

const OURS: MacBytes = [2, 9, 9, 9, 9, 1];
const NODE_MAC: MacBytes = [2, 9, 9, 9, 9, 5];
const ROUTER_MAC: MacBytes = [2, 9, 9, 9, 9, 0xfe];
const SENDER_MAC: MacBytes = [2, 9, 9, 9, 9, 9];

/// Bytes before the inner Ethernet header.
const OUTER: usize = 50;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x08;

/// A node whose underlay interface is real, with neighbours.
fn stage() -> Option<Kernel> {
    if !namespace::enter() {
        return None;
    }
    for line in [
        "link set under0 address 02:09:09:09:09:01",
        "neigh add 192.0.2.5 lladdr 02:09:09:09:09:05 dev under0 nud permanent",
        "neigh add 192.0.2.254 lladdr 02:09:09:09:09:fe dev under0 nud permanent",
    ] {
        ip(line);
    }
    let mut kernel = furnished()?;
    let config = NodeConfig { underlay_ifindex: UNDERLAY_IFINDEX, flags: node_flags::MASQUERADE, ..CONFIG };
    kernel.set(map_name::CONFIG, &0u32, &config);
    kernel.attach_xdp(UNDERLAY_IFINDEX);
    Some(kernel)
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

macro_rules! stage {
    () => {
        match stage() {
            Some(kernel) => kernel,
            None => return,
        }
    };
}

/// As a classifier is given it: the loopback device, on which tests run those, has no address.
fn came(frame: Frame) -> Frame {
    frame.macs([0; 6], SENDER_MAC)
}

/// As it comes in by the underlay.
fn on_wire(frame: &Frame) -> Frame {
    frame.clone().macs(OURS, SENDER_MAC)
}

/// A frame as node 5 sends it through the tunnel: the outer headers, written here a second time.
fn in_tunnel(inner: &Frame, tunnel: Tunnel) -> Frame {
    let bytes = inner.bytes();
    let mut payload = vec![0xc0, 1];
    payload.extend(TUNNEL_PORT.to_be_bytes());
    payload.extend((bytes.len() as u16 + 16).to_be_bytes());
    payload.extend([0, 0, 8, 0, 0, 0]);
    payload.extend(&tunnel.identity.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(&bytes);
    let sender = Peer { address: tunnel.underlay, ..NODE_5 };
    Frame::ipv4(&sender, &UNDERLAY, UDP, &payload).macs(OURS, NODE_MAC)
}

/// What a run added: packets and bytes by flow and by counter.
#[derive(Debug, PartialEq, Eq)]
struct Added {
    flows: BTreeMap<FlowKey<V4>, (u64, u64, u8)>,
    counters: BTreeMap<u32, (u64, u64)>,
}

/// Runs something; what it returns, and what it added. It must leave all else as it is.
fn added<T>(kernel: &mut Kernel, run: impl FnOnce(&mut Kernel) -> T) -> (T, Added) {
    let before = kernel.snapshot();
    let result = run(kernel);
    let after = kernel.snapshot();
    assert_eq!(before.written, after.written);
    let keys = |flows: &BTreeMap<FlowKey<V4>, FlowEntry>| flows.keys().copied().collect::<Vec<_>>();
    assert_eq!(keys(&before.flows), keys(&after.flows), "no flow begins or ends");
    let flows = (after.flows.iter())
        .filter(|(key, entry)| before.flows[key] != **entry)
        .map(|(key, new)| {
            let old = before.flows[key];
            let counts =
                FlowEntry { packets: old.packets, bytes: old.bytes, tcp_flags: old.tcp_flags, ..*new };
            assert_eq!(counts, old, "nothing changes but counts");
            (*key, (new.packets - old.packets, new.bytes - old.bytes, new.tcp_flags))
        })
        .collect();
    let counters = (after.counters.into_iter())
        .filter_map(|(slot, (packets, bytes))| {
            let (old_packets, old_bytes) = before.counters.get(&slot).copied().unwrap_or((0, 0));
            (packets != old_packets).then_some((slot, (packets - old_packets, bytes - old_bytes)))
        })
        .collect();
    assert_eq!(kernel.events(), []);
    (result, Added { flows, counters })
}

/// A frame, by the classifier and before the stack. Both bring forth the same, and count the same; what left before the stack.
#[track_caller]
fn carried(
    kernel: &mut Kernel,
    program: Program,
    frame: &Frame,
    wire: &Frame,
    tunnel: Option<Tunnel>,
) -> Vec<u8> {
    // So that either is the first to see a flag.
    let ((), _) = added(kernel, |kernel| drop(kernel.run(program, &frame.bytes(), tunnel)));
    let (expected, classified) = added(kernel, |kernel| kernel.run(program, &frame.bytes(), tunnel));
    assert_eq!(expected.code, 7, "redirected");
    let (ran, mut early) = added(kernel, |kernel| kernel.run_xdp(&wire.bytes(), UNDERLAY_IFINDEX));
    assert_eq!(ran.code, TX, "carried");
    let carried = early.counters.remove(&counter_slot(COUNTED_BEFORE_STACK, Ingress));
    assert_eq!(carried, Some((1, frame.len())));
    assert_eq!(early, classified);
    let inner = if ran.bytes.len() == expected.bytes.len() { 0 } else { OUTER };
    // Of a frame that leaves as it is the kernel writes the Ethernet addresses after the classifier.
    let from = if inner == 0 { 14 } else { 0 };
    assert_eq!(ran.bytes[inner + from..], expected.bytes[from..]);
    ran.bytes
}

/// The outer headers of what goes to node 5, as this identity.
#[track_caller]
fn check_outer(bytes: &[u8], told: Tunnel) {
    let length = |from: usize| (bytes.len() - from) as u16;
    assert_eq!((&bytes[..6], &bytes[6..12], &bytes[12..14]), (&NODE_MAC[..], &OURS[..], &[8, 0][..]));
    let ip = &bytes[14..34];
    assert_eq!((ip[0], ip[1], &ip[2..4]), (0x45, 0, &length(14).to_be_bytes()[..]));
    assert_eq!((&ip[6..8], ip[8], ip[9]), (&[0x40, 0][..], 64, UDP));
    assert_eq!((&ip[12..16], &ip[16..20]), (&UNDERLAY.address[..], &told.underlay[..]));
    assert_eq!(checksum(ip), [0, 0]);
    let (udp, vxlan) = (&bytes[34..42], &bytes[42..50]);
    assert!(udp[0] >= 0xc0, "a dynamic port");
    assert_eq!(&udp[2..4], TUNNEL_PORT.to_be_bytes());
    assert_eq!((&udp[4..6], &udp[6..8]), (&length(34).to_be_bytes()[..], &[0, 0][..]));
    let [_, vni @ ..] = told.identity.to_be_bytes();
    assert_eq!((&vxlan[..4], &vxlan[4..7], vxlan[7]), (&[8, 0, 0, 0][..], &vni[..], 0));
}

/// The frame goes up as it came, and nothing else happens.
#[track_caller]
fn up(kernel: &mut Kernel, bytes: &[u8], what: &str) {
    let (ran, changed) = added(kernel, |kernel| kernel.run_xdp(bytes, UNDERLAY_IFINDEX));
    assert_eq!((ran.code, ran.bytes), (PASS, bytes.to_vec()), "{what}");
    assert_eq!(changed, Added { flows: BTreeMap::new(), counters: BTreeMap::new() }, "{what}");
}

/// What a client sends in the middle of conversations, and what begins them.
fn requests() -> Vec<(Frame, Frame)> {
    let mut all = Vec::new();
    for (number, client) in (0..).zip([&INTERNET, &PARTNER]) {
        let port = 1000 + number;
        all.push((Frame::tcp(client, &VIP, port, PORT, 2), Frame::tcp(client, &VIP, port, PORT, ACK | PUSH)));
        let udp = Frame::udp(client, &VIP, port, PORT);
        all.push((udp.clone(), udp));
        let udp = Frame::udp(client, &VIP, 100 + port, PORT).checksummed();
        all.push((udp.clone(), udp));
    }
    all.into_iter().map(|(first, next)| (came(first), came(next))).collect()
}

/// The first packet of a flow, decided by the classifier; the port that it got here.
fn begin(kernel: &mut Kernel, first: &Frame) -> u16 {
    assert_eq!(kernel.run(FromNetdev, &first.bytes(), None).code, 7);
    assert_eq!(kernel.events().len(), 1, "a new flow");
    u16::from_be_bytes(kernel.flow(&first.key()).expect("it is known").rewrite_src_port_be)
}

/// What the backend answers to somebody at this port.
fn answer(request: &Frame, backend: &Backend, to: &Peer, port: u16) -> Frame {
    match request.key().protocol {
        TCP => Frame::tcp(&backend.at, to, backend.port, port, ACK | PUSH),
        _ if request.bytes()[40..42] == [0; 2] => Frame::udp(&backend.at, to, backend.port, port),
        _ => Frame::udp(&backend.at, to, backend.port, port).checksummed(),
    }
}

#[test]
fn to_a_backend_of_another_node_and_back() {
    let mut kernel = stage!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    for (first, request) in requests() {
        let port = begin(&mut kernel, &first);
        let told = kernel.run_for_tunnel_key(FromNetdev, &request.bytes());
        let bytes = carried(&mut kernel, FromNetdev, &request, &on_wire(&request), None);
        check_outer(&bytes, told);
        let answer = answer(&request, &r, &GATEWAY, port);
        let tunnel = tunnel_from(&R);
        let bytes = carried(&mut kernel, FromOverlay, &answer, &in_tunnel(&answer, tunnel), Some(tunnel));
        assert_eq!((&bytes[..6], &bytes[6..12]), (&ROUTER_MAC[..], &OURS[..]));
    }
}

#[test]
fn to_a_backend_outside_and_back() {
    let mut kernel = stage!();
    let p = backend(1, Peer { address: [203, 0, 113, 9], ..PARTNER });
    serve(&mut kernel, &[p]);
    for (first, request) in requests() {
        let port = begin(&mut kernel, &first);
        let answer = came(answer(&request, &p, &UNDERLAY, port));
        for frame in [request, answer] {
            let bytes = carried(&mut kernel, FromNetdev, &frame, &on_wire(&frame), None);
            assert_eq!((&bytes[..6], &bytes[6..12]), (&ROUTER_MAC[..], &OURS[..]));
        }
    }
}

#[test]
fn to_a_backend_that_answers_itself() {
    let mut kernel = stage!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let flags = service_flags::PRESENT | service_flags::DSR;
    kernel.set(
        map_name::SERVICES,
        &SERVICE,
        &ServiceEntry { table: 5 << 32 | 1, flags, ..ServiceEntry::default() },
    );
    for (first, request) in requests() {
        begin(&mut kernel, &first);
        let bytes = carried(&mut kernel, FromNetdev, &request, &on_wire(&request), None);
        check_outer(&bytes, Tunnel { identity: WORLD, underlay: NODE_5.address });
        assert_eq!(bytes[OUTER + 14..], request.bytes()[14..], "untouched");
    }
}

/// Short frames have padding, which the tunnel carries along.
#[test]
fn padding_stays() {
    let mut kernel = stage!();
    serve(&mut kernel, &[backend(1, R)]);
    let first = came(Frame::udp(&INTERNET, &VIP, 1000, PORT));
    begin(&mut kernel, &first);
    let pad = |frame: &Frame| [frame.bytes(), vec![0; 2]].concat();
    let expected = kernel.run(FromNetdev, &pad(&first), None).bytes;
    let ran = kernel.run_xdp(&pad(&on_wire(&first)), UNDERLAY_IFINDEX);
    assert_eq!((ran.code, &ran.bytes[OUTER..]), (TX, &expected[..]));
}

#[test]
fn what_is_unusual_goes_up_unchanged() {
    let mut kernel = stage!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let first = came(Frame::tcp(&INTERNET, &VIP, 1000, PORT, 2));
    begin(&mut kernel, &first);
    let frame = |flags| on_wire(&Frame::tcp(&INTERNET, &VIP, 1000, PORT, flags));
    let plain = frame(ACK);
    let usual = plain.bytes();
    assert_eq!(kernel.run_xdp(&usual, UNDERLAY_IFINDEX).code, TX, "else nothing here would be told");
    for (what, bytes) in [
        ("opens", frame(2).bytes()),
        ("ends", frame(ACK | 1).bytes()),
        ("is reset", frame(4).bytes()),
        ("fragment", plain.clone().fragment(0, true).bytes()),
        ("rest of a fragment", plain.clone().fragment(10, false).bytes()),
        ("options", plain.clone().options(1).bytes()),
        ("last hop", plain.clone().ttl(1).bytes()),
        ("for another", plain.clone().macs([2, 9, 9, 9, 9, 2], SENDER_MAC).bytes()),
        ("for all", plain.clone().macs([0xff; 6], SENDER_MAC).bytes()),
        ("VLAN", plain.clone().ethertype(0x8100).bytes()),
        ("unknown flow", plain.clone().source_port(1001).bytes()),
        ("no service's port", plain.clone().destination_port(81).bytes()),
        ("the node's own", on_wire(&Frame::tcp(&INTERNET, &UNDERLAY, 1000, 22, ACK)).bytes()),
        ("cut short in IP", usual[..30].to_vec()),
        ("cut short in TCP", usual[..50].to_vec()),
        ("no frame", usual[..14].to_vec()),
        ("echo", on_wire(&Frame::echo_request(&INTERNET, &VIP, 7)).bytes()),
        ("error", on_wire(&to_backend(&first, &r).error_about(NODE_5.address, 3, 4, 1400)).bytes()),
        ("too long", on_wire(&Frame::ipv4(&INTERNET, &VIP, TCP, &long(&plain, 1431))).bytes()),
        ("says it is longer", [&usual[..17], &[usual[17] + 1], &usual[18..]].concat()),
        ("unfinished", unfinished(&plain)),
    ] {
        up(&mut kernel, &bytes, what);
    }
    let longest = on_wire(&Frame::ipv4(&INTERNET, &VIP, TCP, &long(&plain, 1430)));
    assert_eq!(kernel.run_xdp(&longest.bytes(), UNDERLAY_IFINDEX).code, TX, "as long as the tunnel carries");

    let mut changed = |what: &str, change: &mut dyn FnMut(&mut Kernel), undo: &mut dyn FnMut(&mut Kernel)| {
        change(&mut kernel);
        up(&mut kernel, &usual, what);
        undo(&mut kernel);
        assert_eq!(kernel.run_xdp(&usual, UNDERLAY_IFINDEX).code, TX, "{what}: was all");
    };
    let config = NodeConfig { underlay_ifindex: UNDERLAY_IFINDEX, flags: node_flags::MASQUERADE, ..CONFIG };
    let put = |config: NodeConfig| move |kernel: &mut Kernel| kernel.set(map_name::CONFIG, &0u32, &config);
    changed("another build", &mut put(NodeConfig { abi_version: 99, ..config }), &mut put(config));
    changed("another interface", &mut put(NodeConfig { underlay_ifindex: 4, ..config }), &mut put(config));
    changed("no tunnel", &mut put(NodeConfig { vxlan_ifindex: 0, ..config }), &mut put(config));
    changed("an epoch ago", &mut |kernel| raise(kernel, R.address), &mut |kernel| {
        kernel.set(map_name::EPOCHS, &epoch_shard_v4(R.address), &epoch_of(R.address));
    });
    let neighbour = "192.0.2.5 lladdr 02:09:09:09:09:05 dev under0 nud permanent";
    changed("who is not known where", &mut |_| ip("neigh del 192.0.2.5 dev under0"), &mut |_| {
        ip(&format!("neigh replace {neighbour}"));
    });
    changed("by another way", &mut |_| ip("route add 192.0.2.5 dev other0"), &mut |_| {
        ip("route del 192.0.2.5 dev other0");
    });
    // Half a flow, more than a second after its last packet.
    let key = first.key();
    let entry = kernel.flow(&key).expect("known");
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &entry.reverse_key(&key));
    kernel.set(map_name::FLOWS_V4, &key, &FlowEntry { last_seen_ns: 0, ..entry });
    up(&mut kernel, &usual, "half a flow");
}

/// The payload with so many bytes more behind it.
fn long(frame: &Frame, bytes: usize) -> Vec<u8> {
    let headers = frame.bytes()[34..].to_vec();
    let length = bytes - headers.len();
    [headers, vec![0; length]].concat()
}

/// As a kernel leaves it to a device to finish: the sum of the pseudo header in the place of the checksum.
fn unfinished(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let length = (bytes.len() - 34) as u16;
    let pseudo = [&bytes[26..34], &[0, TCP], &length.to_be_bytes()].concat();
    let sum = checksum(&pseudo).map(|byte| !byte);
    bytes[50..52].copy_from_slice(&sum);
    bytes
}

#[test]
fn flows_of_endpoints_here_go_up() {
    let mut kernel = stage!();
    serve(&mut kernel, &[backend(1, A)]);
    let request = came(Frame::udp(&INTERNET, &VIP, 1000, PORT));
    begin(&mut kernel, &request);
    up(&mut kernel, &on_wire(&request).bytes(), "a backend here");
    let asked = Frame::udp(&A, &INTERNET, 1000, 53);
    kernel.run(Program::FromEndpoint, &asked.bytes(), None);
    kernel.events();
    let port = u16::from_be_bytes(kernel.flow(&asked.key()).expect("known").rewrite_src_port_be);
    up(&mut kernel, &on_wire(&Frame::udp(&INTERNET, &UNDERLAY, 53, port)).bytes(), "masqueraded");
    let told = Frame::udp(&R, &A, 1000, 53);
    kernel.run(FromOverlay, &told.bytes(), Some(tunnel_from(&R)));
    kernel.events();
    up(&mut kernel, &in_tunnel(&told, tunnel_from(&R)).bytes(), "from the tunnel");
}

#[test]
fn what_the_tunnel_brings_is_checked_as_the_classifier_does() {
    let mut kernel = stage!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let first = came(Frame::udp(&INTERNET, &VIP, 1000, PORT));
    let port = begin(&mut kernel, &first);
    let answer = Frame::udp(&R, &GATEWAY, r.port, port);
    let tunnel = tunnel_from(&R);
    let usual = in_tunnel(&answer, tunnel).bytes();
    assert_eq!(kernel.run_xdp(&usual, UNDERLAY_IFINDEX).code, TX, "else nothing here would be told");
    let with = |at: usize, byte: u8| {
        let mut bytes = usual.clone();
        bytes[at] = byte;
        // Outer checksums are not looked at by the program, but what is tested here is not that.
        bytes[24..26].fill(0);
        let sum = checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum);
        bytes
    };
    for (what, bytes) in [
        ("from another node", in_tunnel(&answer, Tunnel { underlay: [192, 0, 2, 6], ..tunnel }).bytes()),
        ("from nobody", in_tunnel(&answer, Tunnel { underlay: [192, 0, 2, 77], ..tunnel }).bytes()),
        ("another identity", in_tunnel(&answer, Tunnel { identity: 401, ..tunnel }).bytes()),
        ("the world", in_tunnel(&answer, Tunnel { identity: WORLD, ..tunnel }).bytes()),
        (
            "names a backend",
            in_tunnel(&answer.clone().macs(*b"\x02D\x0a\x00\x02\x07", *b"\x02DSR\x1f\x90"), tunnel).bytes(),
        ),
        ("no IPv4 inside", in_tunnel(&answer.clone().ethertype(0x86dd), tunnel).bytes()),
        ("last hop", in_tunnel(&answer.clone().ttl(1), tunnel).bytes()),
        ("fragment inside", in_tunnel(&answer.clone().fragment(0, true), tunnel).bytes()),
        ("fragment", in_tunnel(&answer, tunnel).fragment(0, true).bytes()),
        ("options", in_tunnel(&answer, tunnel).options(1).bytes()),
        ("another port", with(37, 0x19)),
        ("shorter inside", with(39, usual[39] - 1)),
        ("padding behind the tunnel's packet", [&usual[..], &[0]].concat()),
        ("a checksum", with(41, 1)),
        ("an extension", with(42, 0x88)),
        ("without an identity", with(42, 0)),
        ("reserved byte 1", with(43, 1)),
        ("reserved byte 2", with(44, 1)),
        ("reserved byte 3", with(45, 1)),
        ("reserved byte 7", with(49, 1)),
        ("congestion on the way", with(15, 3)),
        ("for another", {
            let mut bytes = usual.clone();
            bytes[5] = 2;
            bytes
        }),
        ("cut short", usual[..70].to_vec()),
    ] {
        up(&mut kernel, &bytes, what);
    }
    // A node that left, or moved.
    kernel.set(map_name::NODES, &5u32, &datapath_abi::NodeEntry::default());
    up(&mut kernel, &usual, "of a node that left");
}

/// What a flow's entry has to say for a packet to be carried.
#[test]
fn entries_that_say_something_else_leave_it_to_classifiers() {
    let mut kernel = stage!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let first = came(Frame::udp(&INTERNET, &VIP, 1000, PORT));
    let port = begin(&mut kernel, &first);
    let answer = Frame::udp(&R, &GATEWAY, r.port, port);
    type Change = (&'static str, fn(FlowEntry) -> FlowEntry);
    let check = |kernel: &mut Kernel, frame: &Frame, key: FlowKey<V4>, changes: &[Change]| {
        let entry = kernel.flow(&key).expect("known");
        for (what, change) in changes {
            kernel.set(map_name::FLOWS_V4, &key, &change(entry));
            up(kernel, &frame.bytes(), what);
            kernel.set(map_name::FLOWS_V4, &key, &entry);
            assert_eq!(kernel.run_xdp(&frame.bytes(), UNDERLAY_IFINDEX).code, TX, "{what}: was all");
        }
    };
    // Of both directions.
    let both: [Change; 10] = [
        ("to an endpoint", |entry| sends(entry, FlowAction::Local, HERE)),
        ("to the node", |entry| sends(entry, FlowAction::Host, 0)),
        ("by the stack", |entry| sends(entry, FlowAction::Stack, 0)),
        ("by another interface", |entry| sends(entry, FlowAction::Underlay, UNDERLAY_IFINDEX + 1)),
        ("what is unknown here", |entry| FlowEntry { action: 99, ..entry }),
        ("from an endpoint", |entry| comes(entry, SourceKind::Endpoint, HERE)),
        ("from the node", |entry| comes(entry, SourceKind::Host, 0)),
        ("from an unknown node", |entry| comes(entry, SourceKind::Node, 7)),
        ("from no node", |entry| comes(entry, SourceKind::Node, u32::MAX)),
        ("an epoch ago", |entry| FlowEntry { epoch: entry.epoch.wrapping_sub(1), ..entry }),
    ];
    check(&mut kernel, &on_wire(&first), first.key(), &both);
    let requests: [Change; 6] = [
        ("from the backend's node", |entry| comes(entry, SourceKind::Node, 5)),
        ("from another interface", |entry| comes(entry, SourceKind::Underlay, 1)),
        ("to an unknown node", |entry| sends(entry, FlowAction::Tunnel, 7)),
        ("to no node", |entry| sends(entry, FlowAction::Tunnel, u32::MAX)),
        ("to a node without a neighbour", |entry| sends(entry, FlowAction::Tunnel, 6)),
        ("to no backend", |entry| FlowEntry {
            backend: 0,
            flags: entry.flags & !flow_flags::REWRITE_DST,
            ..entry
        }),
    ];
    check(&mut kernel, &on_wire(&first), first.key(), &requests);

    let wire = in_tunnel(&answer, tunnel_from(&R));
    check(&mut kernel, &wire, answer.key(), &both);
    let answers: [Change; 5] = [
        ("from the underlay", |entry| comes(entry, SourceKind::Underlay, 0)),
        ("from another node", |entry| comes(entry, SourceKind::Node, 6)),
        ("back into the tunnel", |entry| sends(entry, FlowAction::Tunnel, 5)),
        ("a backend chosen elsewhere", |entry| FlowEntry { backend: BACKEND_ELSEWHERE, ..entry }),
        ("of somebody else", |entry| FlowEntry { src_identity: 401, ..entry }),
    ];
    check(&mut kernel, &wire, answer.key(), &answers);
}

fn sends(entry: FlowEntry, action: FlowAction, target: u32) -> FlowEntry {
    FlowEntry { action: action as u8, target, ..entry }
}

fn comes(entry: FlowEntry, kind: SourceKind, source: u32) -> FlowEntry {
    FlowEntry { source_kind: kind as u8, source, ..entry }
}

#[test]
fn refused_networks_get_no_further() {
    let mut kernel = stage!();
    kernel.set(map_name::DROPPED_LPM_V4, &LpmKey { prefix_len: 24, address: [198, 51, 100, 0] }, &1u32);
    let slot = counter_slot(DropReason::DroppedNetwork as u8, Ingress);
    for frame in [
        Frame::udp(&INTERNET, &VIP, 1000, PORT),
        Frame::tcp(&INTERNET, &UNDERLAY, 1000, 22, 2),
        Frame::udp(&INTERNET, &UNDERLAY, 1000, 22).options(2),
        Frame::ipv4(&INTERNET, &UNDERLAY, ICMP, &[8, 0]),
    ] {
        let bytes = on_wire(&frame).bytes();
        let (ran, added) = added(&mut kernel, |kernel| kernel.run_xdp(&bytes, UNDERLAY_IFINDEX));
        assert_eq!(ran.code, DROP);
        assert_eq!(added.counters, [(slot, (1, bytes.len() as u64))].into());
    }
    up(&mut kernel, &on_wire(&Frame::udp(&PARTNER, &UNDERLAY, 1000, 22)).bytes(), "another network");
}
