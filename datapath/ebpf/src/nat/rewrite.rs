//! Giving a packet the addresses and ports that its flow's entry says, and the fragments that have no ports.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_l4_csum_replace,
};
use datapath_abi::{
    DropReason, FlowEntry, FragmentKey, FragmentPorts, V4,
    flow_flags::{REWRITE_DST, REWRITE_SRC},
};
use datapath_packet::{ETHERNET_BYTES, Ipv4, PortPlace, SCTP, UDP, WirePort};

use crate::{context::Packet, maps::FRAGMENTS_V4};

/// Whether packets of the entry's direction are rewritten.
#[inline(always)]
pub fn is_rewritten(entry: &FlowEntry) -> bool {
    entry.flags & (REWRITE_SRC | REWRITE_DST) != 0
}

/// Whether both their source and their destination are.
#[inline(always)]
pub fn is_on_both_sides(entry: &FlowEntry) -> bool {
    entry.flags & (REWRITE_SRC | REWRITE_DST) == REWRITE_SRC | REWRITE_DST
}

/// Writes an IP header with the addresses that the entry says, and its ports behind it. Checksums are updated and not
/// computed anew: what arrived damaged stays so.
///
/// # Errors
/// [`DropReason::MasqueradeProtocol`], [`DropReason::HelperFailed`].
#[inline(never)]
pub fn write(packet: &Packet, ip: &Ipv4, entry: &FlowEntry) -> Result<(), DropReason> {
    let key = &packet.key;
    let (mut src, mut dst) = (key.src, key.dst);
    if entry.flags & REWRITE_SRC != 0 {
        src = entry.rewrite_src;
        let old = (key.src, key.src_port_be);
        change(packet, true, old, (src, entry.rewrite_src_port_be))?;
    }
    if entry.flags & REWRITE_DST != 0 {
        dst = entry.rewrite_dst;
        let old = (key.dst, key.dst_port_be);
        change(packet, false, old, (dst, entry.rewrite_dst_port_be))?;
    }
    packet.write(ETHERNET_BYTES, ip.with_addresses(src, dst))
}

/// Changes a port, and the checksum by that and by the address, which is changed elsewhere.
#[inline(always)]
fn change(
    packet: &Packet,
    is_source: bool,
    (old_address, old_port): (V4, [u8; 2]),
    (new_address, new_port): (V4, [u8; 2]),
) -> Result<(), DropReason> {
    let protocol = packet.key.protocol;
    // SCTP's checksum covers no addresses, and cannot be changed in part: a port must stay.
    if packet.is_rest || protocol == SCTP && new_port == old_port {
        return Ok(());
    }
    let place = PortPlace::of(protocol, is_source).ok_or(DropReason::MasqueradeProtocol)?;
    let checksum = u32::from(packet.transport) + place.checksum as u32;
    // UDP without a checksum stays without, and 0 as a sum is sent as 0xffff.
    let zero = if protocol == UDP { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    // By the helper, because the kernel knows whether the sum is complete or left to the device.
    if place.covers_addresses {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | zero | size_of::<V4>() as u64;
        replace(packet, checksum, address(old_address), address(new_address), flags)?;
    }
    replace(packet, checksum, port(old_port), port(new_port), zero | size_of::<WirePort>() as u64)?;
    packet.write(usize::from(packet.transport) + place.port, WirePort(new_port))
}

#[inline(always)]
fn replace(packet: &Packet, offset: u32, from: u64, to: u64, flags: u64) -> Result<(), DropReason> {
    // SAFETY: the context is the kernel's; no pointer into the packet is held across the call.
    match unsafe { bpf_l4_csum_replace(packet.skb(), offset, from, to, flags) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

#[inline(always)]
fn address(bytes: V4) -> u64 {
    u64::from(u32::from_ne_bytes(bytes))
}

#[inline(always)]
fn port(bytes: [u8; 2]) -> u64 {
    u64::from(u16::from_ne_bytes(bytes))
}

/// Keeps the ports of a datagram's first fragment for those that follow.
#[inline(always)]
pub fn note_fragment(packet: &Packet, ip: &Ipv4) {
    if ip.is_fragment() && !packet.is_rest {
        note(packet, ip);
    }
}

#[inline(never)]
fn note(packet: &Packet, ip: &Ipv4) {
    let ports = FragmentPorts { src_port_be: packet.key.src_port_be, dst_port_be: packet.key.dst_port_be };
    // An LRU makes room. If it does not, the rest of the datagram is dropped, and counted as it comes.
    let _ = FRAGMENTS_V4.insert(fragment_key(packet, ip), ports, 0);
}

/// Gives a fragment without ports those of its datagram, if that is one of a translated flow. Others keep zeros.
#[inline(always)]
pub fn find_ports(packet: &mut Packet, ip: &Ipv4) {
    if packet.is_rest {
        find(packet, ip);
    }
}

#[inline(never)]
fn find(packet: &mut Packet, ip: &Ipv4) {
    // SAFETY: copied at once; an LRU may give the entry to another datagram meanwhile, as it may any time before.
    if let Some(ports) = unsafe { FRAGMENTS_V4.get(fragment_key(packet, ip)) } {
        packet.key.src_port_be = ports.src_port_be;
        packet.key.dst_port_be = ports.dst_port_be;
    }
}

#[inline(always)]
fn fragment_key(packet: &Packet, ip: &Ipv4) -> FragmentKey<V4> {
    FragmentKey {
        src: packet.key.src,
        dst: packet.key.dst,
        id_be: ip.id_be,
        protocol: packet.key.protocol,
        pad: 0,
    }
}
