//! What comes by the underlay interface without a tunnel: ingress.
//!
//! Nearly all of it is the node's own business, and is left alone: not even counted. The programs take replies to translated
//! flows, errors about them, what external clients send to services, and packets for endpoints where there is no tunnel.

use datapath_abi::{
    DropReason, FlowAction, FlowEntry, NodeConfig, SourceKind, flow_flags::REWRITE_DST, node_flags,
};
use datapath_packet::{ETHERTYPE_IPV4, OwnerKind, TCP, UDP, comes_from, opens};

use super::forward_packet;
use crate::{
    context::{Origin, Packet},
    decide::flow,
    lookup,
    maps::FLOWS_V4,
    nat::{masquerade, node_socket},
    parse::{self, fragment},
    service::{frontend, nodeport},
    verdict::Verdict,
};

/// To an endpoint, or left to the stack.
#[inline(always)]
pub fn handle(packet: &mut Packet) -> Result<Verdict, DropReason> {
    // What is malformed is the stack's to judge here, as is everything before the node is configured.
    let Ok(config) = lookup::config() else { return Ok(Verdict::Unspec) };
    match parse::ethernet(packet) {
        Ok(ethernet) if ethernet.ethertype_be == ETHERTYPE_IPV4 && packet.is_for_this_host() => {}
        _ => return Ok(Verdict::Unspec),
    }
    let Ok(ip) = parse::ipv4(packet) else { return Ok(Verdict::Unspec) };
    if ip.dst != config.underlay_v4 && lookup::endpoint_with(ip.dst).is_some() {
        to_endpoint(packet, config)
    } else {
        to_node_or_service(packet, config)
    }
}

/// An endpoint's own address outside the tunnel. From an endpoint of the fleet the packet is forged, unless the fleet has no
/// tunnel: then the sender is known by its address, if that is behind another node.
#[inline(always)]
fn to_endpoint(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    let is_native = config.flags & node_flags::NATIVE != 0;
    let bypasses_stack = is_native && config.flags & node_flags::LEGACY_HOST_ROUTING == 0;
    let is_to_endpoint = |entry: &FlowEntry| {
        comes_from(entry, SourceKind::Underlay, 0) && entry.action == FlowAction::Local as u8
    };
    let known = if bypasses_stack { flow::lookup(packet, is_to_endpoint) } else { None };
    if known.is_none() {
        match claim_of_source(packet, is_native) {
            FORGED => return Err(DropReason::UnderlaySource),
            BEHIND_OTHER_NODE if bypasses_stack => {}
            _ => return Ok(Verdict::Unspec),
        }
    }
    forward_packet(packet, config, known, Origin::Native)
}

/// The source is behind another node, and nothing says that the packet should have come by a tunnel.
const BEHIND_OTHER_NODE: u32 = 0;
/// The source is not an endpoint's: the stack's to judge. (From its own addresses the node lets nobody in: martians.)
const ELSEWHERE: u32 = 1;
/// The source is an endpoint's that cannot have sent this from there.
const FORGED: u32 = 2;

/// What the source address of a packet to an endpoint's own address claims.
#[inline(never)]
fn claim_of_source(packet: &Packet, is_native: bool) -> u32 {
    let source = lookup::owner(packet.key.src);
    match source.kind {
        OwnerKind::Outside | OwnerKind::ThisNode => ELSEWHERE,
        OwnerKind::OtherNode if is_native => BEHIND_OTHER_NODE,
        OwnerKind::OtherNode if source.is_node() => ELSEWHERE,
        OwnerKind::OtherNode | OwnerKind::ThisNodesCidr => FORGED,
    }
}

/// Replies to translated flows have a port of this node's range, frontends have theirs. A packet with neither is asked
/// nothing more, and ports are told by one look into a small array: all of the node's own traffic comes by here.
#[inline(always)]
fn to_node_or_service(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    fragment::find_ports(packet);
    let key = &packet.key;
    let is_reply = key.dst == config.underlay_v4 && masquerade::is_port(config, key.dst_port_be);
    let is_to_service_port = lookup::is_service_port(key.protocol, key.dst_port_be);
    if !is_reply && !is_to_service_port && !packet.is_icmp_error {
        return Ok(Verdict::Unspec);
    }
    let is_ours = |entry: &FlowEntry| {
        (entry.flags & REWRITE_DST != 0 || entry.backend != 0) && comes_from(entry, SourceKind::Underlay, 0)
    };
    let known = flow::lookup(packet, is_ours);
    if known.is_some() {
        return forward_packet(packet, config, known, Origin::Unproven);
    }
    if is_left_to_stack(packet, config, is_reply, is_to_service_port) {
        return Ok(Verdict::Unspec);
    }
    let origin = if packet.service_id != 0 { Origin::External } else { Origin::Unproven };
    forward_packet(packet, config, None, origin)
}

/// Whether a packet whose flow is not known is the stack's. Otherwise the service port is noted that the packet goes to, if
/// any.
#[inline(never)]
fn is_left_to_stack(
    packet: &mut Packet,
    config: &NodeConfig,
    is_reply: bool,
    is_to_service_port: bool,
) -> bool {
    if packet.is_icmp_error {
        return true;
    }
    if is_to_service_port {
        frontend::find(packet, config);
        frontend::keep(packet);
        nodeport::find_at_unlisted_address(packet, config);
        if packet.service_id != 0 {
            // A connection that the node has made itself, from a port that became a service's.
            return !opens(packet.tcp_flags) && node_socket::is_connected(packet, &packet.key);
        }
    }
    !is_reply || is_to_node_socket(packet)
}

/// Whether a packet to a port of the masquerade is for the node itself: nothing is translated to that port, and the node has
/// a socket there. The node's sockets have no ports in the range, unless somebody bound one by name; before there was a
/// masquerade the kernel may have given one to a connection that still is.
#[inline(always)]
fn is_to_node_socket(packet: &Packet) -> bool {
    // SAFETY: as in `Flow::entry`; read at once.
    let entry = unsafe { FLOWS_V4.get(packet.key) };
    entry.is_none_or(|entry| entry.flags & REWRITE_DST == 0)
        && (!matches!(packet.key.protocol, TCP | UDP) || node_socket::exists(packet, &packet.key))
}
