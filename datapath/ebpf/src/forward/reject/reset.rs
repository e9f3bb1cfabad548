//! TCP resets of the programs' own: they tell a client that a connection is nobody's.

use aya_ebpf::helpers::{bpf_csum_diff, bpf_skb_change_tail};
use datapath_abi::{BUDGET_ERRORS, DropReason, ERRORS_PER_WINDOW};
use datapath_packet::{
    ETHERNET_BYTES, Ethernet, Ipv4, Macs, PseudoHeader, TCP, Tcp, WirePort, flag, native_checksum,
};

use crate::{context::Packet, parse, report};

/// A header without options: where the segment begins.
const SEGMENT: usize = ETHERNET_BYTES + size_of::<Ipv4>();

/// Makes a reset of a TCP segment, from the segment's receiver to its sender. False, with the packet of no further use, if
/// the segment deserves none, or this node has sent enough of them for now.
#[inline(never)]
pub fn make(packet: &Packet) -> bool {
    let is_plain = usize::from(packet.transport_offset) == SEGMENT && !packet.is_later_fragment;
    is_plain
        && packet.tcp_flags & flag::RST == 0
        && report::is_within_budget(BUDGET_ERRORS, ERRORS_PER_WINDOW)
        && write(packet).is_ok()
}

#[inline(always)]
fn write(packet: &Packet) -> Result<(), DropReason> {
    let segment: Tcp = packet.read(SEGMENT)?;
    let ethernet = parse::ethernet(packet)?;
    let (src, dst) = (packet.key.dst, packet.key.src);
    // SAFETY: the context is the kernel's; no pointer into the packet is held across the call.
    if unsafe { bpf_skb_change_tail(packet.skb(), (SEGMENT + size_of::<Tcp>()) as u32, 0) } != 0 {
        return Err(DropReason::HelperFailed);
    }
    let macs = Macs { dst: ethernet.macs.src, src: ethernet.macs.dst };
    packet.write(0, Ethernet { macs, ..ethernet })?;
    packet.write(ETHERNET_BYTES, Ipv4::own(TCP, src, dst, size_of::<Tcp>() as u16))?;
    packet.write(SEGMENT, segment.reset())?;
    let mut covered =
        PseudoHeader { src, dst, zero: 0, protocol: TCP, bytes_be: (size_of::<Tcp>() as u16).to_be_bytes() };
    // SAFETY: the header is of the size given.
    let seed = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            (&raw mut covered).cast(),
            size_of::<PseudoHeader>() as u32,
            0,
        )
    };
    let sum = packet.sum::<{ size_of::<Tcp>() }>(SEGMENT, seed as u32)?;
    packet.write(SEGMENT + Tcp::CHECKSUM, WirePort(native_checksum(sum)))?;
    packet.mark_for_this_host()
}
