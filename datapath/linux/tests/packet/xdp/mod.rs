//! XDP: what the program forwards is what the classifiers would have made of the same packet, counters included;
//! everything else it passes up unchanged.

mod drop;
mod entries;
mod forward;
mod pass;
mod tunnel;

use std::collections::BTreeMap;

use datapath_abi::{
    COUNTED_BY_XDP, Direction::Ingress, FlowEntry, FlowKey, MacBytes, NodeConfig, V4, counter_slot,
    node_flags,
};
use datapath_linux::object::Program::{self, FromNetdev};

use crate::{
    check::populated_kernel,
    frame::{Frame, UNDERLAY_SENDER, checksum},
    kernel::{Kernel, TC_ACT_REDIRECT, Tunnel, XDP_PASS, XDP_TX},
    namespace::{self, UNDERLAY_IFINDEX, ip},
    service::{Backend, PORT, VIP},
    wire::{
        ETHERNET_BYTES, IPV4_BYTES, L4_OFFSET, TCP, UDP, UDP_BYTES, VXLAN_BYTES,
        tcp_flag::{ACK, PSH, SYN},
    },
    world::{CONFIG, INTERNET, NODE_5, PARTNER, Peer, TUNNEL_PORT, UNDERLAY, configure},
};

const UNDERLAY_MAC: MacBytes = [2, 9, 9, 9, 9, 1];
const NODE_5_MAC: MacBytes = [2, 9, 9, 9, 9, 5];
const ROUTER_MAC: MacBytes = [2, 9, 9, 9, 9, 0xfe];
const NODE_5_NEIGHBOUR: &str = "192.0.2.5 lladdr 02:09:09:09:09:05 dev under0 nud permanent";

/// Bytes before the inner Ethernet header of a tunnel packet.
const OUTER_BYTES: usize = L4_OFFSET + UDP_BYTES + VXLAN_BYTES;

/// A node whose underlay device is a veth with the XDP program.
const XDP_CONFIG: NodeConfig =
    NodeConfig { underlay_ifindex: UNDERLAY_IFINDEX, flags: node_flags::MASQUERADE, ..CONFIG };

/// A populated node with an underlay device and its neighbours, and the XDP program attached; else the end of the test.
macro_rules! xdp_kernel {
    () => {
        match $crate::xdp::try_kernel() {
            Some(kernel) => kernel,
            None => return,
        }
    };
}
use xdp_kernel;

fn try_kernel() -> Option<Kernel> {
    if !namespace::enter() {
        return None;
    }
    ip("link set under0 address 02:09:09:09:09:01");
    ip(&format!("neigh add {NODE_5_NEIGHBOUR}"));
    ip("neigh add 192.0.2.254 lladdr 02:09:09:09:09:fe dev under0 nud permanent");
    let mut kernel = populated_kernel()?;
    configure(&mut kernel, XDP_CONFIG);
    kernel.attach_xdp(UNDERLAY_IFINDEX);
    Some(kernel)
}

/// The frame as the XDP program gets it at the underlay device.
fn on_wire(frame: &Frame) -> Frame {
    frame.clone().macs(UNDERLAY_MAC, UNDERLAY_SENDER)
}

/// The frame as another node sends it through the tunnel: the outer headers, implemented a second time.
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
    Frame::ipv4(&sender, &UNDERLAY, UDP, &payload).macs(UNDERLAY_MAC, NODE_5_MAC)
}

/// Increments by a run: packets, bytes and TCP flags by flow, packets and bytes by counter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Increments {
    flows: BTreeMap<FlowKey<V4>, (u64, u64, u8)>,
    counters: BTreeMap<u32, (u64, u64)>,
}

/// Runs something, which may change nothing but counts; returns its result and the increments.
#[track_caller]
fn increments<T>(kernel: &mut Kernel, run: impl FnOnce(&mut Kernel) -> T) -> (T, Increments) {
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
    let counters = after.counters_since(&before);
    assert_eq!(kernel.events(), []);
    (result, Increments { flows, counters })
}

/// Runs the classifier on a frame and the XDP program on the same frame as it is on the wire: the XDP program forwards
/// the same bytes and counts the same. Returns the bytes that leave.
#[track_caller]
fn check_forwarded(
    kernel: &mut Kernel,
    program: Program,
    frame: &Frame,
    wire: &Frame,
    tunnel: Option<Tunnel>,
) -> Vec<u8> {
    // A first run, so that neither of the compared ones is the first to see a TCP flag.
    let ((), _) = increments(kernel, |kernel| drop(kernel.run(program, frame, tunnel)));
    let (expected, classified) = increments(kernel, |kernel| kernel.run(program, frame, tunnel));
    assert_eq!(expected.code, TC_ACT_REDIRECT);
    let (ran, mut by_xdp) = increments(kernel, |kernel| kernel.run_xdp(wire, UNDERLAY_IFINDEX));
    assert_eq!(ran.code, XDP_TX);
    let forwarded = by_xdp.counters.remove(&counter_slot(COUNTED_BY_XDP, Ingress));
    assert_eq!(forwarded, Some((1, frame.len())));
    assert_eq!(by_xdp, classified);
    // A tunnel packet's outer headers come from the XDP program, but after a classifier from the kernel.
    let outer = if ran.bytes.len() == expected.bytes.len() { 0 } else { OUTER_BYTES };
    // After a classifier, the kernel writes the Ethernet addresses of a packet that leaves without the tunnel.
    let ethernet = if outer == 0 { ETHERNET_BYTES } else { 0 };
    assert_eq!(ran.bytes[outer + ethernet..], expected.bytes[ethernet..]);
    ran.bytes
}

/// Checks the outer headers of a packet to node 5 with this tunnel key.
#[track_caller]
fn check_outer(bytes: &[u8], key: Tunnel) {
    let length = |from: usize| (bytes.len() - from) as u16;
    assert_eq!(
        (&bytes[..6], &bytes[6..12], &bytes[12..14]),
        (&NODE_5_MAC[..], &UNDERLAY_MAC[..], &[8, 0][..])
    );
    let ip = &bytes[ETHERNET_BYTES..][..IPV4_BYTES];
    assert_eq!((ip[0], ip[1], &ip[2..4]), (0x45, 0, &length(ETHERNET_BYTES).to_be_bytes()[..]));
    assert_eq!((&ip[6..8], ip[8], ip[9]), (&[0x40, 0][..], 64, UDP));
    assert_eq!((&ip[12..16], &ip[16..20]), (&UNDERLAY.address[..], &key.underlay[..]));
    assert_eq!(checksum(ip), [0, 0]);
    let (udp, vxlan) = bytes[L4_OFFSET..OUTER_BYTES].split_at(UDP_BYTES);
    assert!(udp[0] >= 0xc0, "a dynamic port");
    assert_eq!(&udp[2..4], TUNNEL_PORT.to_be_bytes());
    assert_eq!((&udp[4..6], &udp[6..8]), (&length(L4_OFFSET).to_be_bytes()[..], &[0, 0][..]));
    let [_, vni @ ..] = key.identity.to_be_bytes();
    assert_eq!((&vxlan[..4], &vxlan[4..7], vxlan[7]), (&[8, 0, 0, 0][..], &vni[..], 0));
}

/// Checks that a packet leaves for the next router.
#[track_caller]
fn check_to_router(bytes: &[u8]) {
    assert_eq!((&bytes[..6], &bytes[6..12]), (&ROUTER_MAC[..], &UNDERLAY_MAC[..]));
}

/// Checks that the frame goes up to the stack unchanged, without any other effect.
#[track_caller]
fn check_passed(kernel: &mut Kernel, bytes: &[u8], case: &str) {
    let (ran, increments) = increments(kernel, |kernel| kernel.run_xdp(bytes, UNDERLAY_IFINDEX));
    assert_eq!((ran.code, ran.bytes), (XDP_PASS, bytes.to_vec()), "{case}");
    assert_eq!(increments, Increments::default(), "{case}");
}

/// Checks that the frame is forwarded: a changed copy of it that is not forwarded differs by the change alone.
#[track_caller]
fn check_control(kernel: &mut Kernel, bytes: &[u8], case: &str) {
    assert_eq!(kernel.run_xdp(bytes, UNDERLAY_IFINDEX).code, XDP_TX, "{case}: the control is forwarded");
}

/// Pairs of a client's first packet and a later packet of the same flow.
fn requests() -> Vec<(Frame, Frame)> {
    let mut all = Vec::new();
    for (number, client) in (0..).zip([&INTERNET, &PARTNER]) {
        let port = 1000 + number;
        let tcp = |flags| Frame::tcp(client, &VIP, port, PORT, flags);
        all.push((tcp(SYN), tcp(ACK | PSH)));
        let udp = Frame::udp(client, &VIP, port, PORT);
        all.push((udp.clone(), udp));
        let udp = Frame::udp(client, &VIP, 100 + port, PORT).checksummed();
        all.push((udp.clone(), udp));
    }
    all.into_iter().map(|(first, later)| (first.on_underlay(), later.on_underlay())).collect()
}

/// Lets the classifier decide on the first packet of a flow; returns the flow's source port after NAT.
#[track_caller]
fn open(kernel: &mut Kernel, first: &Frame) -> u16 {
    assert_eq!(kernel.run(FromNetdev, first, None).code, TC_ACT_REDIRECT);
    assert_eq!(kernel.events().len(), 1, "a new flow");
    u16::from_be_bytes(kernel.flow(&first.key()).expect("a flow").rewrite_src_port_be)
}

/// The backend's response to the address and port that it sees.
fn response(request: &Frame, backend: &Backend, to: &Peer, port: u16) -> Frame {
    match request.key().protocol {
        TCP => Frame::tcp(&backend.at, to, backend.port, port, ACK | PSH),
        _ if request.has_checksum() => Frame::udp(&backend.at, to, backend.port, port).checksummed(),
        _ => Frame::udp(&backend.at, to, backend.port, port),
    }
}
