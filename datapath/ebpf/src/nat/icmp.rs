//! Translating an ICMP error, outside and in what it quotes.

use datapath_abi::{
    DropReason, FlowAction, FlowEntry, V4,
    flow_flags::{REWRITE_DST, REWRITE_SRC},
};
use datapath_packet::{ETHERNET_BYTES, IcmpError, Ipv4, PortPlace, WirePort, requoted};

use crate::{
    context::Packet,
    parse::icmp::{is_from_quoted_destination, quote_offset},
};

/// Gives an error about a translated flow the addresses that the error's receiver knows.
///
/// # Errors
/// [`DropReason::MasqueradeProtocol`], [`DropReason::HelperFailed`].
#[inline(never)]
pub fn translate_error(packet: &Packet, ip: &Ipv4, entry: &FlowEntry) -> Result<(), DropReason> {
    // The error goes the other way than the quoted packet: the error's source is the quote's destination.
    let (mut src, mut dst) = (packet.key.src, packet.key.dst);
    if entry.flags & REWRITE_DST != 0 {
        dst = entry.rewrite_dst;
    }
    // A router on the way keeps its address; what the flow's other end sends gets the flow's source. An error that leaves
    // this node gets that source, too: the next node would refuse another one, and nobody outside knows it.
    let leaves = entry.action == FlowAction::Tunnel as u8 || entry.action == FlowAction::Underlay as u8;
    if entry.flags & REWRITE_SRC != 0 && (leaves || is_from_quoted_destination(packet)) {
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

/// Replaces one end of the quoted packet.
#[inline(always)]
fn requote(packet: &Packet, is_source: bool, address: V4, port_be: [u8; 2]) -> Result<(), DropReason> {
    let checksum = usize::from(packet.transport_offset) + core::mem::offset_of!(IcmpError, checksum_be);
    let quote = quote_offset(packet);
    let ip: Ipv4 = packet.read(quote)?;
    let place = PortPlace::of(ip.protocol, is_source).ok_or(DropReason::MasqueradeProtocol)?;
    let port = quote + size_of::<Ipv4>() + place.port;
    let WirePort(old_port_be) = packet.read(port)?;
    let WirePort(sum) = packet.read(checksum)?;
    let (ip, sum) = requoted(sum, &ip, is_source, address, (old_port_be, port_be));
    packet.write(quote, ip)?;
    packet.write(port, WirePort(port_be))?;
    packet.write(checksum, WirePort(sum))
}
