//! ICMP errors: those that pass belong to the flow of the packet that they are about; those that the programs send
//! tell an endpoint, or one behind another node, why its packet went no further.

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::{bpf_skb_adjust_room, bpf_skb_change_tail},
};
use datapath_abi::{
    BUDGET_ERRORS, DropReason, ERRORS_PER_WINDOW, FlowAction, FlowEntry, V4,
    flow_flags::{REWRITE_DST, REWRITE_SRC},
};
use datapath_packet::{
    ETHERNET_BYTES, Ethernet, ICMP, IcmpError, Ipv4, Macs, PortPlace, Quote, TCP, Tcp, WirePort,
    native_checksum, requoted,
};

use crate::{context::Packet, decide::flow as flows, maps::FLOWS_V4, report};

/// IP and ICMP header in front of what is quoted.
const ADDED_BYTES: usize = size_of::<Ipv4>() + size_of::<IcmpError>();

/// The entry of the flow that an error is about, of the direction in which the error goes; null if there is none, or
/// none that holds.
#[inline(never)]
pub fn flow_of(packet: &Packet) -> *mut FlowEntry {
    let none = core::ptr::null_mut();
    let Ok(quote) = packet.read::<Quote>(usize::from(packet.transport) + size_of::<IcmpError>()) else {
        return none;
    };
    let Some(key) = quote.answer_key() else { return none };
    // To another than who sent the packet, it tells of somebody else's.
    if key.dst != packet.key.dst {
        return none;
    }
    match FLOWS_V4.get_ptr_mut(key) {
        // SAFETY: as in `flows::Flow::entry`.
        Some(entry) if flows::is_valid(unsafe { &*entry }) => entry,
        _ => none,
    }
}

/// Whether an error comes from the one that the quoted packet was for, and not from a router on its way.
///
/// Inline: a frame of its own, empty as it is, takes 32 bytes from the deepest chain of calls on old kernels.
#[inline(always)]
pub fn is_from_its_end(packet: &Packet) -> bool {
    // Nobody's address where there is none: what was not read must not be compared (the verifier).
    let quoted = match packet.read::<Quote>(usize::from(packet.transport) + size_of::<IcmpError>()) {
        Ok(quote) => quote.ip.dst,
        Err(_) => [0; 4],
    };
    quoted == packet.key.src
}

/// Gives an error, whose flow is translated, the addresses that its receiver knows, outside and in what it quotes.
///
/// # Errors
/// [`DropReason::HelperFailed`].
#[inline(never)]
pub fn translate(packet: &Packet, ip: &Ipv4, entry: &FlowEntry) -> Result<(), DropReason> {
    // The error goes the other way than the quoted packet: its source is the quote's destination.
    let (mut src, mut dst) = (packet.key.src, packet.key.dst);
    if entry.flags & REWRITE_DST != 0 {
        dst = entry.rewrite_dst;
    }
    // A router on the way keeps its address; what the flow's other end says comes from where the flow does. What leaves the
    // node has no other source: the next node would refuse it, and nobody outside knows it.
    let leaves = entry.action == FlowAction::Tunnel as u8 || entry.action == FlowAction::Underlay as u8;
    if entry.flags & REWRITE_SRC != 0 && (leaves || is_from_its_end(packet)) {
        src = entry.rewrite_src;
    }
    if entry.flags & REWRITE_SRC != 0 {
        requote(packet, false, entry.rewrite_src, entry.rewrite_src_port_be)?;
    }
    if entry.flags & REWRITE_DST != 0 {
        requote(packet, true, entry.rewrite_dst, entry.rewrite_dst_port_be)?;
    }
    packet.write(ETHERNET_BYTES, ip.with_addresses(src, dst))
}

/// Replaces one side of the quoted packet.
#[inline(always)]
fn requote(packet: &Packet, is_source: bool, address: V4, port_be: [u8; 2]) -> Result<(), DropReason> {
    const CHECKSUM: usize = core::mem::offset_of!(IcmpError, checksum_be);
    let at_quote = usize::from(packet.transport) + size_of::<IcmpError>();
    let ip: Ipv4 = packet.read(at_quote)?;
    let place = PortPlace::of(ip.protocol, is_source).ok_or(DropReason::MasqueradeProtocol)?;
    let at_port = at_quote + size_of::<Ipv4>() + place.port;
    let WirePort(old_port_be) = packet.read(at_port)?;
    let WirePort(sum) = packet.read(usize::from(packet.transport) + CHECKSUM)?;
    let (ip, sum) = requoted(sum, &ip, is_source, address, (old_port_be, port_be));
    packet.write(at_quote, ip)?;
    packet.write(at_port, WirePort(port_be))?;
    packet.write(usize::from(packet.transport) + CHECKSUM, WirePort(sum))
}

/// Makes an ICMP error of a packet that goes no further, from `own` to its sender. False, with the packet of no
/// further use, if it deserves none (RFC 1122, 3.2.2), or this node has sent enough of them for now.
#[inline(never)]
pub fn refuse(packet: &Packet, own: V4, reason: DropReason) -> bool {
    /// A header without options: what is quoted has a fixed length.
    const PLAIN: usize = ETHERNET_BYTES + size_of::<Ipv4>();
    if packet.is_rest || packet.is_error || usize::from(packet.transport) != PLAIN {
        return false;
    }
    let Ok(quote) = packet.read::<Quote>(ETHERNET_BYTES) else { return false };
    if matches!(reason, DropReason::TooBig) && !quote.ip.dont_fragment() {
        return false;
    }
    if !report::within_budget(BUDGET_ERRORS, ERRORS_PER_WINDOW) {
        return false;
    }
    // The kernel lets nothing be cut off before the place of a checksum that is still to be computed: of TCP the whole
    // header is quoted.
    if quote.ip.protocol == TCP {
        answer::<{ size_of::<Ipv4>() + size_of::<Tcp>() }>(packet, own, reason, quote.ip.src).is_ok()
    } else {
        answer::<{ size_of::<Quote>() }>(packet, own, reason, quote.ip.src).is_ok()
    }
}

#[inline(always)]
fn answer<const QUOTED: usize>(
    packet: &Packet,
    own: V4,
    reason: DropReason,
    sender: V4,
) -> Result<(), DropReason> {
    const AT_ERROR: usize = ETHERNET_BYTES + size_of::<Ipv4>();
    let ethernet = packet.ethernet()?;
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
    packet.write(AT_ERROR, error)?;
    let header = packet.sum::<{ size_of::<IcmpError>() }>(AT_ERROR, 0)?;
    let sum = packet.sum::<QUOTED>(AT_ERROR + size_of::<IcmpError>(), header)?;
    let at_checksum = AT_ERROR + core::mem::offset_of!(IcmpError, checksum_be);
    packet.write(at_checksum, WirePort(native_checksum(sum)))?;
    packet.accept()
}
