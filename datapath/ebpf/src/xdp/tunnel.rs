//! The tunnel between nodes, where the program writes and takes off the outer headers itself. (Where the device does:
//! `forward::tunnel`.)

use datapath_abi::{FlowEntry, NodeConfig};
use datapath_packet::{
    ETHERNET_BYTES, ETHERTYPE_IPV4, Ethernet, Ipv4, Macs, TUNNEL_BYTES, TunnelHeader, flow_hash,
    tunnel_identity, tunnel_ipv4,
};

use crate::{
    lookup,
    xdp::{Sent, frame::Frame, headers::Headers, next_hop::RouteQuery},
};

/// Sends a packet to the node that is the entry's target.
#[inline(always)]
pub fn encapsulate(
    frame: &Frame,
    config: &NodeConfig,
    ethernet: &Ethernet,
    headers: &Headers,
    entry: &FlowEntry,
) -> Sent {
    let mtu_bytes = config.pod_mtu_bytes;
    let is_too_big = mtu_bytes != 0 && u32::from(u16::from_be_bytes(headers.ip.total_bytes_be)) > mtu_bytes;
    let Some(remote) = lookup::underlay_of(entry.target) else { return Sent::Unchanged };
    // The whole frame goes on, padding included, as by the device. Its length fits in 16 bits: it is at most a page.
    let frame_bytes = frame.bytes() as u16;
    if is_too_big || config.vxlan_ifindex == 0 {
        return Sent::Unchanged;
    }
    let outer = tunnel_ipv4(config.underlay_v4, remote, frame_bytes, headers.ip.tos);
    let mut hop = RouteQuery::of_tunnel(&outer, config.tunnel_port);
    let Some(macs) = hop.ask(frame, config, ethernet.macs.dst) else { return Sent::Unchanged };
    let translated = headers.translated(headers.ip, entry);
    let vni = tunnel_identity(entry.src_identity);
    let header = TunnelHeader::new(flow_hash(&translated.key), config.tunnel_port, vni, frame_bytes);
    if !frame.grow(TUNNEL_BYTES) {
        return Sent::Unchanged;
    }
    let inside =
        Ethernet { macs: Macs { dst: entry.dst_mac, src: entry.src_mac }, ethertype_be: ETHERTYPE_IPV4 };
    let written = translated.write::<TUNNEL_BYTES>(frame)
        && frame.write(TUNNEL_BYTES, inside)
        && frame.write(ETHERNET_BYTES + size_of::<Ipv4>(), header)
        && frame.write(ETHERNET_BYTES, outer)
        && frame.write(0, Ethernet { macs, ethertype_be: ETHERTYPE_IPV4 });
    if written { Sent::Whole } else { Sent::Damaged }
}
