//! "Send this to node n", where the program writes the tunnel's headers itself. (Where the device does: `deliver`.)

use datapath_abi::{FlowEntry, NodeConfig};
use datapath_packet::{
    ETHERNET_BYTES, ETHERTYPE_IPV4, Ethernet, Ipv4, Macs, TUNNEL_BYTES, TunnelHeader, flow_hash,
    tunnel_identity, tunnel_ipv4,
};

use crate::{
    lookup,
    xdp::{Sent, frame::Frame, next_hop::Question, packet::Inner},
};

/// Puts a packet into the tunnel to the node that is the entry's target.
#[inline(always)]
pub fn send(
    frame: &Frame,
    config: &NodeConfig,
    ethernet: &Ethernet,
    inner: &Inner,
    entry: &FlowEntry,
) -> Sent {
    let mtu_bytes = config.pod_mtu_bytes;
    let is_too_big = mtu_bytes != 0 && u32::from(u16::from_be_bytes(inner.ip.total_bytes_be)) > mtu_bytes;
    let Some(remote) = lookup::underlay_of(entry.target) else { return Sent::Not };
    // All of the frame goes on, padding included, as by the device. Its length fits: it is at most a page.
    let frame_bytes = frame.bytes() as u16;
    if is_too_big || config.vxlan_ifindex == 0 {
        return Sent::Not;
    }
    let outer = tunnel_ipv4(config.underlay_v4, remote, frame_bytes, inner.ip.tos);
    let mut hop = Question::of_tunnel(&outer, config.tunnel_port);
    let Some(macs) = hop.ask(frame, config, ethernet.macs.dst) else { return Sent::Not };
    let rewritten = inner.rewritten(inner.ip, entry);
    let vni = tunnel_identity(entry.src_identity);
    let header = TunnelHeader::new(flow_hash(&rewritten.key), config.tunnel_port, vni, frame_bytes);
    if !frame.grow(TUNNEL_BYTES) {
        return Sent::Not;
    }
    let inside =
        Ethernet { macs: Macs { dst: entry.dst_mac, src: entry.src_mac }, ethertype_be: ETHERTYPE_IPV4 };
    let written = rewritten.write::<TUNNEL_BYTES>(frame)
        && frame.write(TUNNEL_BYTES, inside)
        && frame.write(ETHERNET_BYTES + size_of::<Ipv4>(), header)
        && frame.write(ETHERNET_BYTES, outer)
        && frame.write(0, Ethernet { macs, ethertype_be: ETHERTYPE_IPV4 });
    if written { Sent::Whole } else { Sent::Damaged }
}
