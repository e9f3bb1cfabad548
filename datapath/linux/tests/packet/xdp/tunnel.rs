//! The XDP program checks tunnel packets as strictly as the classifier.

use datapath_abi::NodeEntry;

use super::{check_control, check_passed, in_tunnel, open, xdp_kernel};
use crate::{
    frame::{Frame, checksum},
    kernel::Tunnel,
    service::{PORT, VIP, backend, install},
    wire::{ECN_CE, ETHERNET_BYTES, IPV4_BYTES, L4_OFFSET, UDP_BYTES, ethertype},
    world::{GATEWAY, INTERNET, R, WORLD, tunnel_from},
};

const TOS: usize = ETHERNET_BYTES + 1;
const IP_CHECKSUM: usize = ETHERNET_BYTES + 10;
const UDP_DST_PORT: usize = L4_OFFSET + 2;
const UDP_LENGTH: usize = L4_OFFSET + 4;
const UDP_CHECKSUM: usize = L4_OFFSET + 6;
const VXLAN: usize = L4_OFFSET + UDP_BYTES;

/// The frame with one byte of its headers replaced, and the IP checksum right again.
fn with_byte(frame: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes[at] = byte;
    bytes[IP_CHECKSUM..][..2].fill(0);
    let sum = checksum(&bytes[ETHERNET_BYTES..][..IPV4_BYTES]);
    bytes[IP_CHECKSUM..][..2].copy_from_slice(&sum);
    bytes
}

#[test]
fn xdp_passes_tunnel_packets_that_the_classifier_must_check() {
    let mut kernel = xdp_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let first = Frame::udp(&INTERNET, &VIP, 1000, PORT).on_underlay();
    let port = open(&mut kernel, &first);
    let response = Frame::udp(&R, &GATEWAY, r.port, port);
    let tunnel = tunnel_from(&R);
    let from = |tunnel| in_tunnel(&response, tunnel).bytes();
    let inner = |frame: Frame| in_tunnel(&frame, tunnel).bytes();
    let usual = from(tunnel);
    let with = |at, byte| with_byte(&usual, at, byte);
    check_control(&mut kernel, &usual, "usual packet");
    for (case, bytes) in [
        ("another node", from(Tunnel { underlay: [192, 0, 2, 6], ..tunnel })),
        ("unknown node", from(Tunnel { underlay: [192, 0, 2, 77], ..tunnel })),
        ("another identity", from(Tunnel { identity: R.identity + 1, ..tunnel })),
        ("identity of the world", from(Tunnel { identity: WORLD, ..tunnel })),
        ("names a backend", inner(response.clone().macs(*b"\x02D\x0a\x00\x02\x07", *b"\x02DSR\x1f\x90"))),
        ("no IPv4 inside", inner(response.clone().ethertype(ethertype::IPV6))),
        ("last hop", inner(response.clone().ttl(1))),
        ("fragment inside", inner(response.clone().fragment(0, true))),
        ("fragment", in_tunnel(&response, tunnel).fragment(0, true).bytes()),
        ("IP options", in_tunnel(&response, tunnel).options(1).bytes()),
        ("another port", with(UDP_DST_PORT + 1, 0x19)),
        ("shorter by its UDP header", with(UDP_LENGTH + 1, usual[UDP_LENGTH + 1] - 1)),
        ("padding behind the UDP payload", [&usual[..], &[0]].concat()),
        ("UDP checksum", with(UDP_CHECKSUM + 1, 1)),
        ("VXLAN extension", with(VXLAN, 0x88)),
        ("no VNI", with(VXLAN, 0)),
        ("reserved byte 1", with(VXLAN + 1, 1)),
        ("reserved byte 2", with(VXLAN + 2, 1)),
        ("reserved byte 3", with(VXLAN + 3, 1)),
        ("reserved byte 7", with(VXLAN + 7, 1)),
        ("congestion experienced", with(TOS, ECN_CE)),
        ("Ethernet address of another host", with(5, 2)),
        ("cut short", usual[..70].to_vec()),
    ] {
        check_passed(&mut kernel, &bytes, case);
    }
    // The node has left the fleet, or has another address.
    kernel.set(datapath_abi::map_name::NODES, &5u32, &NodeEntry::default());
    check_passed(&mut kernel, &usual, "node that left");
}
