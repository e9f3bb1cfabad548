//! Frames that need more than the XDP program does go up to the stack.

use datapath_abi::{FlowEntry, NodeConfig};
use datapath_linux::object::Program::{FromEndpoint, FromTunnel};

use super::{
    NODE_5_NEIGHBOUR, XDP_CONFIG, check_control, check_passed, in_tunnel, on_wire, open, xdp_kernel,
};
use crate::{
    frame::{CLIENT_PORT, Frame, UNDERLAY_SENDER, checksum},
    kernel::Kernel,
    namespace::ip,
    service::{PORT, VIP, backend, dnat, install},
    wire::{
        L4_OFFSET, TCP, ethertype, fragmentation_needed,
        tcp_flag::{ACK, FIN, RST, SYN},
    },
    world::{A, INTERNET, NODE_5, R, UNDERLAY, bump_epoch, configure, reset_epoch, tunnel_from},
};

#[test]
fn xdp_passes_unusual_frames_unchanged() {
    let mut kernel = xdp_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let tcp = |flags| Frame::tcp(&INTERNET, &VIP, CLIENT_PORT, PORT, flags);
    let first = tcp(SYN).on_underlay();
    open(&mut kernel, &first);
    let plain = on_wire(&tcp(ACK));
    let usual = plain.bytes();
    check_control(&mut kernel, &usual, "usual frame");
    for (case, bytes) in [
        ("SYN", on_wire(&tcp(SYN)).bytes()),
        ("FIN", on_wire(&tcp(ACK | FIN)).bytes()),
        ("RST", on_wire(&tcp(RST)).bytes()),
        ("first fragment", plain.clone().fragment(0, true).bytes()),
        ("later fragment", plain.clone().fragment(10, false).bytes()),
        ("IP options", plain.clone().options(1).bytes()),
        ("last hop", plain.clone().ttl(1).bytes()),
        ("Ethernet address of another host", plain.clone().macs([2, 9, 9, 9, 9, 2], UNDERLAY_SENDER).bytes()),
        ("broadcast", plain.clone().macs([0xff; 6], UNDERLAY_SENDER).bytes()),
        ("VLAN", plain.clone().ethertype(ethertype::VLAN).bytes()),
        ("unknown flow", plain.clone().source_port(1001).bytes()),
        ("no service's port", plain.clone().destination_port(81).bytes()),
        ("for the host", on_wire(&Frame::tcp(&INTERNET, &UNDERLAY, CLIENT_PORT, 22, ACK)).bytes()),
        ("cut short in IP", usual[..30].to_vec()),
        ("cut short in TCP", usual[..50].to_vec()),
        ("Ethernet header only", usual[..14].to_vec()),
        ("echo request", on_wire(&Frame::echo_request(&INTERNET, &VIP, 7)).bytes()),
        (
            "ICMP error",
            on_wire(&dnat(&first, &r).icmp_error(fragmentation_needed(1400), NODE_5.address)).bytes(),
        ),
        ("longer than the tunnel's MTU", with_ip_payload_of(&plain, 1431)),
        ("longer by its IP header", [&usual[..17], &[usual[17] + 1], &usual[18..]].concat()),
        ("checksum left to the device", with_partial_checksum(&plain)),
    ] {
        check_passed(&mut kernel, &bytes, case);
    }
    let longest = with_ip_payload_of(&plain, 1430);
    check_control(&mut kernel, &longest, "as long as the tunnel's MTU");
}

#[test]
fn xdp_passes_frames_when_the_node_has_changed() {
    let mut kernel = xdp_kernel!();
    install(&mut kernel, &[backend(1, R)]);
    let tcp = |flags| Frame::tcp(&INTERNET, &VIP, CLIENT_PORT, PORT, flags);
    let first = tcp(SYN).on_underlay();
    open(&mut kernel, &first);
    let frame = on_wire(&tcp(ACK)).bytes();

    type Change<'a> = &'a mut dyn FnMut(&mut Kernel);
    let mut changed = |case: &str, change: Change, undo: Change| {
        change(&mut kernel);
        check_passed(&mut kernel, &frame, case);
        undo(&mut kernel);
        check_control(&mut kernel, &frame, case);
    };
    let put = |config: NodeConfig| move |kernel: &mut Kernel| configure(kernel, config);
    let config = XDP_CONFIG;
    changed("another ABI version", &mut put(NodeConfig { abi_version: 99, ..config }), &mut put(config));
    changed("another underlay", &mut put(NodeConfig { underlay_ifindex: 4, ..config }), &mut put(config));
    changed("no tunnel", &mut put(NodeConfig { vxlan_ifindex: 0, ..config }), &mut put(config));
    changed("previous epoch", &mut |kernel| bump_epoch(kernel, R.address), &mut |kernel| {
        reset_epoch(kernel, R.address)
    });
    changed("no neighbour", &mut |_| ip("neigh del 192.0.2.5 dev under0"), &mut |_| {
        ip(&format!("neigh replace {NODE_5_NEIGHBOUR}"))
    });
    changed("route by another device", &mut |_| ip("route add 192.0.2.5 dev other0"), &mut |_| {
        ip("route del 192.0.2.5 dev other0")
    });
    // The reply direction's entry is gone, and its periodic check is due.
    let key = first.key();
    let entry = kernel.flow(&key).expect("a flow");
    kernel.remove_flow(&entry.reverse_key(&key));
    kernel.set_flow((key, FlowEntry { last_seen_ns: 0, ..entry }));
    check_passed(&mut kernel, &frame, "one entry of two");
}

/// The frame, padded with data until the IP payload has this length.
fn with_ip_payload_of(frame: &Frame, bytes: usize) -> Vec<u8> {
    let mut payload = frame.bytes()[L4_OFFSET..].to_vec();
    payload.resize(bytes, 0);
    on_wire(&Frame::ipv4(&INTERNET, &VIP, TCP, &payload)).bytes()
}

/// As a kernel leaves the checksum to a device: the sum of the pseudo header in its place (CHECKSUM_PARTIAL).
fn with_partial_checksum(frame: &Frame) -> Vec<u8> {
    const ADDRESSES: std::ops::Range<usize> = L4_OFFSET - 8..L4_OFFSET;
    const CHECKSUM: std::ops::Range<usize> = L4_OFFSET + 16..L4_OFFSET + 18;
    let mut bytes = frame.bytes();
    let length = (bytes.len() - L4_OFFSET) as u16;
    let pseudo_header = [&bytes[ADDRESSES], &[0, TCP], &length.to_be_bytes()].concat();
    let sum = checksum(&pseudo_header).map(|byte| !byte);
    bytes[CHECKSUM].copy_from_slice(&sum);
    bytes
}

#[test]
fn xdp_passes_flows_of_local_endpoints() {
    let mut kernel = xdp_kernel!();
    install(&mut kernel, &[backend(1, A)]);
    let request = Frame::udp(&INTERNET, &VIP, 1000, PORT).on_underlay();
    open(&mut kernel, &request);
    check_passed(&mut kernel, &on_wire(&request).bytes(), "local backend");
    let from_a = Frame::udp(&A, &INTERNET, 1000, 53);
    kernel.run(FromEndpoint, &from_a, None);
    kernel.events();
    let port = u16::from_be_bytes(kernel.flow(&from_a.key()).expect("a flow").rewrite_src_port_be);
    let masqueraded = Frame::udp(&INTERNET, &UNDERLAY, 53, port);
    check_passed(&mut kernel, &on_wire(&masqueraded).bytes(), "masquerade");
    let to_a = Frame::udp(&R, &A, 1000, 53);
    kernel.run(FromTunnel, &to_a, Some(tunnel_from(&R)));
    kernel.events();
    check_passed(&mut kernel, &in_tunnel(&to_a, tunnel_from(&R)).bytes(), "from the tunnel");
}
