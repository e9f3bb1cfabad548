//! Networks from which the XDP program drops everything.

use datapath_abi::{Direction::Ingress, DropReason, LpmKey, counter_slot, map_name};

use super::{check_passed, increments, on_wire, xdp_kernel};
use crate::{
    frame::{CLIENT_PORT, Frame},
    kernel::XDP_DROP,
    namespace::UNDERLAY_IFINDEX,
    service::{PORT, VIP},
    wire::{ICMP, tcp_flag::SYN},
    world::{INTERNET, PARTNER, UNDERLAY},
};

#[test]
fn xdp_drops_packets_of_refused_networks() {
    let mut kernel = xdp_kernel!();
    kernel.set(map_name::DROPPED_LPM_V4, &LpmKey { prefix_len: 24, address: [198, 51, 100, 0] }, &1u32);
    let slot = counter_slot(DropReason::DroppedNetwork as u8, Ingress);
    for frame in [
        Frame::udp(&INTERNET, &VIP, 1000, PORT),
        Frame::tcp(&INTERNET, &UNDERLAY, CLIENT_PORT, 22, SYN),
        Frame::udp(&INTERNET, &UNDERLAY, 1000, 22).options(2),
        Frame::ipv4(&INTERNET, &UNDERLAY, ICMP, &[8, 0]),
    ] {
        let wire = on_wire(&frame);
        let (ran, increments) = increments(&mut kernel, |kernel| kernel.run_xdp(&wire, UNDERLAY_IFINDEX));
        assert_eq!(ran.code, XDP_DROP);
        assert_eq!(increments.counters, [(slot, (1, wire.len()))].into());
    }
    let other_network = on_wire(&Frame::udp(&PARTNER, &UNDERLAY, 1000, 22));
    check_passed(&mut kernel, &other_network.bytes(), "another network");
}
