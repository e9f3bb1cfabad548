//! ICMP errors of the programs' own.

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::{bpf_skb_adjust_room, bpf_skb_change_tail},
};
use datapath_abi::{BUDGET_ERRORS, DropReason, ERRORS_PER_WINDOW, V4};
use datapath_packet::{
    ETHERNET_BYTES, Ethernet, ICMP, IcmpError, Ipv4, Macs, Quote, TCP, Tcp, WirePort, native_checksum,
};

use crate::{context::Packet, parse, report};

/// IP and ICMP header in front of what is quoted.
const ADDED_BYTES: usize = size_of::<Ipv4>() + size_of::<IcmpError>();

/// Makes an ICMP error of a packet, from `own` to the packet's sender. False, with the packet of no further use, if the
/// packet deserves none (RFC 1122, 3.2.2), or this node has sent enough of them for now.
#[inline(never)]
pub fn make(packet: &Packet, own: V4, reason: DropReason) -> bool {
    /// A header without options: what is quoted has a fixed length.
    const PLAIN: usize = ETHERNET_BYTES + size_of::<Ipv4>();
    if packet.is_later_fragment || packet.is_icmp_error || usize::from(packet.transport_offset) != PLAIN {
        return false;
    }
    let Ok(quote) = packet.read::<Quote>(ETHERNET_BYTES) else { return false };
    if matches!(reason, DropReason::TooBig) && !quote.ip.dont_fragment() {
        return false;
    }
    if !report::is_within_budget(BUDGET_ERRORS, ERRORS_PER_WINDOW) {
        return false;
    }
    // The kernel lets nothing be cut off before the place of a checksum that is still to be computed: of TCP the whole header
    // is quoted.
    if quote.ip.protocol == TCP {
        write::<{ size_of::<Ipv4>() + size_of::<Tcp>() }>(packet, own, reason, quote.ip.src).is_ok()
    } else {
        write::<{ size_of::<Quote>() }>(packet, own, reason, quote.ip.src).is_ok()
    }
}

#[inline(always)]
fn write<const QUOTED: usize>(
    packet: &Packet,
    own: V4,
    reason: DropReason,
    sender: V4,
) -> Result<(), DropReason> {
    const ERROR: usize = ETHERNET_BYTES + size_of::<Ipv4>();
    let ethernet = parse::ethernet(packet)?;
    // SAFETY: the context is the kernel's; no pointer into the packet is held across the calls.
    let failed = unsafe {
        bpf_skb_change_tail(packet.skb(), (ETHERNET_BYTES + QUOTED) as u32, 0) != 0
            || bpf_skb_adjust_room(packet.skb(), ADDED_BYTES as i32, BPF_ADJ_ROOM_MAC, 0) != 0
    };
    if failed {
        return Err(DropReason::HelperFailed);
    }
    let macs = Macs { dst: ethernet.macs.src, src: ethernet.macs.dst };
    packet.write(0, Ethernet { macs, ..ethernet })?;
    let message_bytes = (size_of::<IcmpError>() + QUOTED) as u16;
    let (error, src) = match reason {
        DropReason::TooBig => (IcmpError::too_big(packet.mtu_bytes as u16), own),
        // In the name of the service, as a node would that has the address.
        DropReason::NoBackend => (IcmpError::PORT_UNREACHABLE, packet.key.dst),
        _ => (IcmpError::TIME_EXCEEDED, own),
    };
    packet.write(ETHERNET_BYTES, Ipv4::own(ICMP, src, sender, message_bytes))?;
    packet.write(ERROR, error)?;
    let header = packet.sum::<{ size_of::<IcmpError>() }>(ERROR, 0)?;
    let sum = packet.sum::<QUOTED>(ERROR + size_of::<IcmpError>(), header)?;
    let checksum = ERROR + core::mem::offset_of!(IcmpError, checksum_be);
    packet.write(checksum, WirePort(native_checksum(sum)))?;
    packet.mark_for_this_host()
}
