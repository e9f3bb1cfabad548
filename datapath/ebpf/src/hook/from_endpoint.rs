//! What a workload sends: host side of its device, ingress.

use datapath_abi::{
    BACKEND_ELSEWHERE, DropReason, EndpointEntry, NODE_NONE, NODE_SELF, NodeConfig, SourceKind,
    TUNNEL_DST_MAC, identity_number as identity, node_flags,
};
use datapath_packet::{
    Arp, ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet, Halves, Place, Side, UDP, answer,
    comes_from, is_unicast,
};

use crate::{
    context::Packet,
    decide::flow as flows,
    forward::execute as deliver,
    hook::Verdict,
    lookup,
    nat::masquerade::{self, NO_PORT},
    nat::rewrite,
    parse::icmp,
    service,
    service::dsr as direct,
    service::nodeport as outside,
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
    let ip = packet.parse_ipv4()?;
    rewrite::find_ports(packet, ip);
    // An entry made for this interface proves the source address. It does not prove the Ethernet source, but
    // that goes nowhere: it is rewritten, or is of no use to a stack that routes.
    let here = packet.ifindex();
    let is_end = !packet.is_error || icmp::is_from_its_end(packet);
    let known = flows::known(packet, |entry| is_end && comes_from(entry, SourceKind::Endpoint, here));
    deliver::flow(packet, config, ip, known, |packet| decide_anew(packet, config, ethernet))
}

#[inline(always)]
fn decide_anew(
    packet: &mut Packet,
    config: &NodeConfig,
    ethernet: &Ethernet,
) -> Result<&'static mut Halves, DropReason> {
    flows::begin(packet);
    let endpoint = sender(packet, ethernet)?;
    if packet.key.src != endpoint.address_v4 {
        return Err(DropReason::SourceSpoofed);
    }
    if packet.stale.backend == BACKEND_ELSEWHERE {
        direct::as_if_asked(packet, config);
        return packet.decided();
    }
    if packet.stale.is_reply && packet.stale.is_from_outside {
        outside::as_if_asked(packet, config);
        return packet.decided();
    }
    // Of one that a service leads to itself both sides are translated.
    if packet.stale.is_on_both_sides && packet.stale.is_reply && !service::turn(packet) {
        return Err(DropReason::NoTranslation);
    }
    decide_for(packet, config, endpoint)
}

/// Decides about what the endpoint sends with `packet.key`, of which the source is its own.
///
/// # Errors
/// [`DropReason::NoBackend`], [`DropReason::TunnelPort`], and those of where it goes.
#[inline(always)]
pub fn decide_for(
    packet: &mut Packet,
    config: &NodeConfig,
    endpoint: &EndpointEntry,
) -> Result<&'static mut Halves, DropReason> {
    // What a backend answers goes to its client, whatever else is reached there.
    if !packet.stale.is_reply || packet.is_turned {
        service::translate(packet);
    }
    if !packet.is_refused() {
        decide_directly(packet, config, endpoint);
    }
    service::settle(packet);
    packet.decided()
}

#[inline(never)]
fn decide_directly(packet: &mut Packet, config: &NodeConfig, endpoint: &EndpointEntry) {
    if let Err(reason) = directly(packet, config, endpoint) {
        packet.refuse(reason);
    }
}

/// The same once it is known who gets it.
#[inline(always)]
fn directly(packet: &mut Packet, config: &NodeConfig, endpoint: &EndpointEntry) -> Result<(), DropReason> {
    let (mut to, is_world) = destination(packet, config, packet.moment.dst_shard)?;
    packet.dst_identity = to.identity;
    let is_client = asks_a_port_of_a_node(packet, &to);
    if is_client {
        to = Side::stack(Place::Stack, to.identity, packet.moment.dst_shard, config.host_mac);
    }
    // To a node's listed address it would be taken for the tunnel's own; to another address of a node as well, once
    // masquerade, or the host's own, has given it this node's address.
    if packet.key.protocol == UDP
        && u16::from_be_bytes(packet.key.dst_port_be) == config.tunnel_port
        && (is_world || deliver::is_node(packet.key.dst, to.identity))
    {
        return Err(DropReason::TunnelPort);
    }
    let from = Side::endpoint(endpoint, packet.moment.src_shard);
    let is_masqueraded = is_world
        && masquerade::is_wanted(config, packet.key.dst)
        && !deliver::is_node(packet.key.dst, to.identity);
    // One that a service leads to itself would answer itself directly: it sees the gateway instead.
    let is_itself = packet.key.dst == endpoint.address_v4;
    let source = if is_itself { config.gateway_v4 } else { config.underlay_v4 };
    let is_masqueraded = is_masqueraded || is_client;
    let port_be =
        if is_masqueraded || is_itself { masquerade::port_of(packet, config, source)? } else { NO_PORT };
    let may_pass_the_stack = to.place == Place::Stack && (port_be != NO_PORT || !is_world);
    if may_pass_the_stack
        && config.flags & node_flags::LEGACY_HOST_ROUTING == 0
        && lookup::leaves_by_underlay(packet, config, endpoint, packet.key.dst)
    {
        to.place = Place::Underlay(config.underlay_ifindex);
    }
    let halves = flows::decide(packet, &from, &to);
    if port_be != NO_PORT {
        if is_itself {
            halves.replace_source(&packet.key, source, port_be);
        } else {
            halves.masquerade(&packet.key, source, port_be);
        }
    }
    Ok(())
}

/// Whether this goes by the tunnel to a service's port of another node. That one takes it as from a client outside, in the
/// name of this node: it has the backends of those, and nothing goes from tunnel to tunnel.
#[inline(never)]
fn asks_a_port_of_a_node(packet: &Packet, to: &Side) -> bool {
    to.dst_mac == TUNNEL_DST_MAC
        && to.identity == identity::REMOTE_NODE
        && service::number_at(packet, [0; 4]) != 0
        && lookup::node_at(packet.key.dst).is_some()
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

/// Where the destination is, and whether that is outside the fleet. A missing entry inside a known node's CIDR still
/// leads to that node, as unknown; without a tunnel, by the routes.
#[inline(always)]
fn destination(packet: &Packet, config: &NodeConfig, shard: u16) -> Result<(Side, bool), DropReason> {
    let address = packet.key.dst;
    if !is_unicast(address) {
        return Err(DropReason::UnknownDestination);
    }
    if let Some(endpoint) = lookup::endpoint_of(address) {
        return Ok((Side::endpoint(endpoint, shard), false));
    }
    let stack = |place, identity| Side::stack(place, identity, shard, config.host_mac);
    match lookup::ipcache(address) {
        None => Ok((stack(Place::Stack, identity::WORLD), true)),
        Some(entry) => match (entry.node, entry.identity) {
            (NODE_NONE, identity) => Ok((stack(Place::Stack, identity), true)),
            (NODE_SELF, identity::HOST) => Ok((stack(Place::Host, identity::HOST), false)),
            (NODE_SELF, _) => Err(DropReason::UnknownDestination),
            (_, identity) if config.flags & node_flags::NATIVE != 0 => {
                Ok((stack(Place::Stack, identity), false))
            }
            (node, identity) => Ok((Side::node(node, identity, shard), false)),
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

/// Tells the endpoint why its packet goes no further.
#[inline(always)]
pub fn refuse(packet: &Packet, reason: DropReason) -> Option<Verdict> {
    let config = lookup::config().ok()?;
    if service::refuse(packet, config.gateway_v4, reason) {
        Some(Verdict::Into(packet.ifindex()))
    } else {
        None
    }
}
