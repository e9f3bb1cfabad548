//! What a packet's headers say.

pub mod fragment;
pub mod icmp;

use datapath_abi::DropReason;
use datapath_packet::{ETHERNET_BYTES, Ethernet, Ipv4, Tcp, Transport, TransportStart, is_error, ports};

use crate::context::Packet;

/// Offset (8 bytes) of a fragment that would begin inside the TCP header.
const TCP_OVERWRITING_OFFSET: u16 = 1;

/// Reads the Ethernet header.
///
/// # Errors
/// [`DropReason::UnsupportedProtocol`]: the frame has a VLAN tag, which the kernel has put aside and would put back.
/// [`DropReason::Malformed`].
#[inline(always)]
pub fn ethernet(packet: &Packet) -> Result<Ethernet, DropReason> {
    if packet.has_vlan_tag() { Err(DropReason::UnsupportedProtocol) } else { packet.read(0) }
}

/// Reads the IPv4 header, and of the transport header what the flow's key needs.
///
/// # Errors
/// [`DropReason::Malformed`]; [`DropReason::Fragment`] for fragments made to hide their ports.
#[inline(always)]
pub fn ipv4(packet: &mut Packet) -> Result<&'static Ipv4, DropReason> {
    let header = packet.read(ETHERNET_BYTES)?;
    let ip = packet.set_ip(header);
    packet.family = 4;
    packet.key.src = ip.src;
    packet.key.dst = ip.dst;
    packet.key.protocol = ip.protocol;

    let available_bytes = (packet.bytes() as usize).saturating_sub(ETHERNET_BYTES);
    let offset = ETHERNET_BYTES + ip.header_bytes(available_bytes)?;
    packet.transport_offset = offset as u8;
    packet.is_later_fragment = ip.fragment_offset() != 0;
    // RFC 1858: a first fragment without ports, or one that overwrites them, is made to pass filters.
    let cut_short = if ip.is_fragment() { DropReason::Fragment } else { DropReason::Malformed };
    match (Transport::of(ip.protocol), ip.fragment_offset()) {
        (Transport::Tcp, 0) => {
            let tcp: Tcp = packet.read(offset).map_err(|_| cut_short)?;
            set_ports(packet, ports(Transport::Tcp, tcp.start));
            packet.tcp_flags = tcp.flags;
            packet.transport_bytes = (tcp.length >> 4) << 2;
        }
        (transport @ (Transport::Ports | Transport::Icmp), 0) => {
            let start: TransportStart = packet.read(offset).map_err(|_| cut_short)?;
            set_ports(packet, ports(transport, start));
            packet.transport_bytes = size_of::<TransportStart>() as u8;
            packet.is_icmp_error = matches!(transport, Transport::Icmp) && is_error(start.0[0]);
        }
        (Transport::Tcp, TCP_OVERWRITING_OFFSET) => return Err(DropReason::Fragment),
        _ => {}
    }
    Ok(ip)
}

#[inline(always)]
fn set_ports(packet: &mut Packet, (src_port_be, dst_port_be): ([u8; 2], [u8; 2])) {
    packet.key.src_port_be = src_port_be;
    packet.key.dst_port_be = dst_port_be;
}
