//! What other nodes send through the tunnel: `warren_vxlan`, ingress.

use datapath_abi::{DropReason, NodeConfig};
use datapath_packet::ETHERTYPE_IPV4;

use super::forward_packet;
use crate::{
    context::{Origin, Packet},
    decide::{
        flow,
        origin::{TunnelSource, is_from_node},
    },
    forward::tunnel,
    lookup,
    parse::{self, fragment},
    service::dsr,
    verdict::Verdict,
};

/// To an endpoint or to this node, if a member sent it from an address of its own; out by the underlay, if it replies to an
/// external client.
#[inline(always)]
pub fn handle(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    packet.step(tunnel::decapsulate)?;
    packet.src_identity = packet.vni;
    let ethernet = parse::ethernet(packet)?;
    dsr::parse(packet, &ethernet.macs);
    match ethernet.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    parse::ipv4(packet)?;
    fragment::find_ports(packet);
    let source = TunnelSource::of(packet);
    let known = flow::lookup(packet, |entry| is_from_node(&source, entry));
    let origin = if packet.is_dsr { Origin::DsrNode } else { Origin::Node };
    forward_packet(packet, config, known, origin)
}
