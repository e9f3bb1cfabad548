//! What a workload sends: host side of its device, ingress.

use datapath_abi::{DropReason, NodeConfig, SourceKind};
use datapath_packet::{Arp, ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, arp_reply, comes_from};

use super::forward_packet;
use crate::{
    context::{Origin, Packet},
    decide::{flow, origin},
    lookup,
    parse::{self, fragment, icmp},
    verdict::Verdict,
};

/// To another endpoint, the tunnel, this node or its routing.
#[inline(always)]
pub fn handle(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    match parse::ethernet(packet)?.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config),
        ETHERTYPE_ARP => arp(packet, config),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    parse::ipv4(packet)?;
    fragment::find_ports(packet);
    // An entry made for this interface proves the source address. It does not prove the Ethernet source, which goes nowhere:
    // it is overwritten, or is of no use to a stack that routes.
    let ifindex = packet.ifindex();
    let is_from_end = !packet.is_icmp_error || icmp::is_from_quoted_destination(packet);
    let known = flow::lookup(packet, |entry| is_from_end && comes_from(entry, SourceKind::Endpoint, ifindex));
    forward_packet(packet, config, known, Origin::Endpoint)
}

/// Answers for the gateway, out of the interface that the request came by.
#[inline(always)]
fn arp(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    let ethernet = parse::ethernet(packet)?;
    let endpoint = origin::endpoint_of_device(packet, ethernet.macs.src)?;
    let request: Arp = packet.read(ETHERNET_BYTES).map_err(|_| DropReason::ArpRefused)?;
    packet.write(ETHERNET_BYTES, arp_reply(&request, endpoint, config.gateway_v4)?)?;
    packet.write_macs(endpoint.mac, endpoint.host_mac)?;
    Ok(Verdict::Redirect(packet.ifindex()))
}
