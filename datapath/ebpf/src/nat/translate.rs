//! Translating a packet.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_l4_csum_replace,
};
use datapath_abi::{
    DropReason, FlowEntry, V4,
    flow_flags::{REWRITE_DST, REWRITE_SRC},
};
use datapath_packet::{ETHERNET_BYTES, Ipv4, PortPlace, SCTP, UDP, WirePort};

use crate::context::Packet;

/// Writes an IP header with the entry's addresses, and the entry's ports behind it. Checksums are updated and not computed
/// anew: a packet that arrived damaged stays damaged.
///
/// # Errors
/// [`DropReason::MasqueradeProtocol`], [`DropReason::HelperFailed`].
#[inline(never)]
pub fn translate_packet(packet: &Packet, ip: &Ipv4, entry: &FlowEntry) -> Result<(), DropReason> {
    let key = &packet.key;
    let (mut src, mut dst) = (key.src, key.dst);
    if entry.flags & REWRITE_SRC != 0 {
        src = entry.rewrite_src;
        let old = (key.src, key.src_port_be);
        replace_port(packet, true, old, (src, entry.rewrite_src_port_be))?;
    }
    if entry.flags & REWRITE_DST != 0 {
        dst = entry.rewrite_dst;
        let old = (key.dst, key.dst_port_be);
        replace_port(packet, false, old, (dst, entry.rewrite_dst_port_be))?;
    }
    packet.write(ETHERNET_BYTES, ip.with_addresses(src, dst))
}

/// Replaces a port, and updates the checksum for the port and for the address, which is written elsewhere.
#[inline(always)]
fn replace_port(
    packet: &Packet,
    is_source: bool,
    (old_address, old_port): (V4, [u8; 2]),
    (new_address, new_port): (V4, [u8; 2]),
) -> Result<(), DropReason> {
    let protocol = packet.key.protocol;
    // SCTP's checksum covers no addresses, and cannot be updated in part: a port must stay.
    if packet.is_later_fragment || protocol == SCTP && new_port == old_port {
        return Ok(());
    }
    let place = PortPlace::of(protocol, is_source).ok_or(DropReason::MasqueradeProtocol)?;
    let checksum = u32::from(packet.transport_offset) + place.checksum as u32;
    // UDP without a checksum stays without, and a sum of 0 is sent as 0xffff.
    let zero = if protocol == UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    // By the helper, because the kernel knows whether the checksum is complete or left to the device.
    if place.covers_addresses {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | zero | size_of::<V4>() as u64;
        update_checksum(packet, checksum, address_word(old_address), address_word(new_address), flags)?;
    }
    let flags = zero | size_of::<WirePort>() as u64;
    update_checksum(packet, checksum, port_word(old_port), port_word(new_port), flags)?;
    packet.write(usize::from(packet.transport_offset) + place.port, WirePort(new_port))
}

#[inline(always)]
fn update_checksum(packet: &Packet, offset: u32, from: u64, to: u64, flags: u64) -> Result<(), DropReason> {
    // SAFETY: the context is the kernel's; no pointer into the packet is held across the call.
    match unsafe { bpf_l4_csum_replace(packet.skb(), offset, from, to, flags) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

#[inline(always)]
fn address_word(bytes: V4) -> u64 {
    u64::from(u32::from_ne_bytes(bytes))
}

#[inline(always)]
fn port_word(bytes: [u8; 2]) -> u64 {
    u64::from(u16::from_ne_bytes(bytes))
}
