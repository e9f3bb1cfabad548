//! What a workload sends: host side of its device, ingress.

use datapath_abi::{
    DropReason, EndpointEntry, NODE_NONE, NODE_SELF, NodeConfig, SourceKind, identity_number as identity,
};
use datapath_packet::{
    Arp, ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet, Halves, Place, Side, UDP, answer,
    comes_from, is_unicast,
};

use crate::{
    deliver,
    flows::{self, Moment},
    lookup,
    packet::Packet,
    programs::Verdict,
};

/// To another endpoint, the tunnel, this node or its routing.
#[inline(always)]
pub fn decide(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    let ethernet = packet.ethernet()?;
    match ethernet.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config, &ethernet),
        ETHERTYPE_ARP => arp(packet, config, &ethernet),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig, ethernet: &Ethernet) -> Result<Verdict, DropReason> {
    let ip = &packet.parse_ipv4()?;
    // An entry made for this interface proves the source address. It does not prove the Ethernet source, but
    // that goes nowhere: it is rewritten, or is of no use to a stack that routes.
    let here = packet.ifindex();
    match flows::known(packet, |entry| comes_from(entry, SourceKind::Endpoint, here)) {
        Some(flow) => {
            let verdict = deliver::by_entry(packet, config, ip, flow.entry())?;
            flow.touch(packet);
            Ok(verdict)
        }
        None => {
            let halves = decide_anew(packet, config, ethernet)?;
            let verdict = deliver::by_entry(packet, config, ip, &halves.forward)?;
            flows::remember(packet, halves)?;
            Ok(verdict)
        }
    }
}

#[inline(never)]
fn decide_anew(
    packet: &mut Packet,
    config: &NodeConfig,
    ethernet: &Ethernet,
) -> Result<&'static mut Halves, DropReason> {
    let moment = Moment::of(packet);
    let endpoint = sender(packet, ethernet)?;
    if packet.key.src != endpoint.address_v4 {
        return Err(DropReason::SourceSpoofed);
    }
    let to = destination(packet, config, moment.dst_shard)?;
    packet.dst_identity = to.identity;
    if packet.key.protocol == UDP
        && u16::from_be_bytes(packet.key.dst_port_be) == config.tunnel_port
        && deliver::is_node(packet.key.dst, to.identity)
    {
        return Err(DropReason::TunnelPort);
    }
    let from = Side::endpoint(endpoint, moment.src_shard);
    flows::decide(packet, &from, &to, &moment)
}

/// The endpoint behind the interface, if the frame is its own.
#[inline(always)]
fn sender(packet: &mut Packet, ethernet: &Ethernet) -> Result<&'static EndpointEntry, DropReason> {
    let endpoint = lookup::endpoint_at(packet.ifindex())?;
    packet.src_identity = endpoint.identity;
    if ethernet.macs.src != endpoint.mac {
        return Err(DropReason::SourceMac);
    }
    Ok(endpoint)
}

/// Where the destination is. A missing entry inside a known node's CIDR still leads to that node, as unknown.
#[inline(always)]
fn destination(packet: &Packet, config: &NodeConfig, shard: u16) -> Result<Side, DropReason> {
    let address = packet.key.dst;
    if !is_unicast(address) {
        return Err(DropReason::UnknownDestination);
    }
    if let Some(endpoint) = lookup::endpoint_of(address) {
        return Ok(Side::endpoint(endpoint, shard));
    }
    let stack = |place, identity| Side::stack(place, identity, shard, config.host_mac);
    match lookup::ipcache(address) {
        None => Ok(stack(Place::Stack, identity::WORLD)),
        Some(entry) => match (entry.node, entry.identity) {
            (NODE_NONE, identity) => Ok(stack(Place::Stack, identity)),
            (NODE_SELF, identity::HOST) => Ok(stack(Place::Host, identity::HOST)),
            (NODE_SELF, _) => Err(DropReason::UnknownDestination),
            (node, identity) => Ok(Side::node(node, identity, shard)),
        },
    }
}

/// Answers for the gateway out of the interface that asked.
#[inline(always)]
fn arp(packet: &mut Packet, config: &NodeConfig, ethernet: &Ethernet) -> Result<Verdict, DropReason> {
    let endpoint = sender(packet, ethernet)?;
    let request: Arp = packet.read(ETHERNET_BYTES).map_err(|_| DropReason::ArpRefused)?;
    let reply = answer(&request, endpoint, config.gateway_v4)?;
    packet.write(ETHERNET_BYTES, reply)?;
    packet.write_macs(endpoint.mac, endpoint.host_mac)?;
    Ok(Verdict::Out(packet.ifindex()))
}
