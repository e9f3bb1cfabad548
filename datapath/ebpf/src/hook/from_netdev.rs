//! What comes by the underlay interface without a tunnel: ingress.
//!
//! Nearly all of it is the node's own business, and is left alone: not even counted. Ours are answers to translated
//! flows, errors about them, what clients outside send to services, and what comes for endpoints where there is no tunnel.

use datapath_abi::{
    DropReason, FlowAction, FlowEntry, NODE_NONE, NODE_SELF, NodeConfig, SourceKind, flow_flags::REWRITE_DST,
    identity_number as identity, node_flags,
};
use datapath_packet::{ETHERTYPE_IPV4, Halves, Ipv4, Place, Side, TCP, UDP, comes_from, opens};

use crate::{
    context::Packet, decide::flow as flows, forward::execute as deliver, hook::Verdict, hook::from_endpoint,
    lookup, maps::FLOWS_V4, nat::masquerade, nat::rewrite, service, service::nodeport as outside,
};

/// To an endpoint, or left to the stack.
#[inline(always)]
pub fn decide(packet: &mut Packet) -> Result<Verdict, DropReason> {
    // What is malformed is the stack's to judge here, as is everything before the node is configured.
    let Ok(config) = lookup::config() else { return Ok(Verdict::Leave) };
    match packet.ethernet() {
        Ok(ethernet) if ethernet.ethertype_be == ETHERTYPE_IPV4 && packet.is_for_here() => {}
        _ => return Ok(Verdict::Leave),
    }
    let Ok(ip) = packet.parse_ipv4() else { return Ok(Verdict::Leave) };
    if ip.dst != config.underlay_v4 && lookup::endpoint_of(ip.dst).is_some() {
        to_an_endpoint(packet, config, ip)
    } else {
        to_the_node_or_a_service(packet, config, ip)
    }
}

/// An endpoint's own address outside the tunnel: with one that is the fleet's as source, a forgery, unless the fleet
/// has no tunnel. Then it is believed by its address, if that is behind another node: this is all that there is.
#[inline(always)]
fn to_an_endpoint(packet: &mut Packet, config: &NodeConfig, ip: &Ipv4) -> Result<Verdict, DropReason> {
    let is_native = config.flags & node_flags::NATIVE != 0;
    let passes_the_stack = is_native && config.flags & node_flags::LEGACY_HOST_ROUTING == 0;
    let is_direct = |entry: &FlowEntry| {
        comes_from(entry, SourceKind::Underlay, 0) && entry.action == FlowAction::Local as u8
    };
    let known = if passes_the_stack { flows::known(packet, is_direct) } else { None };
    if known.is_none() {
        match origin(packet, is_native) {
            FORGED => return Err(DropReason::UnderlaySource),
            FLEET if passes_the_stack => {}
            _ => return Ok(Verdict::Leave),
        }
    }
    deliver::flow(packet, config, ip, known, |packet| from_another_node(packet, config))
}

/// The source is behind another node, and nothing says that it should have come by a tunnel.
const FLEET: u32 = 0;
/// The source is not an endpoint's: the stack's to judge. (With an address of its own the node lets nobody in: martians.)
const ELSEWHERE: u32 = 1;
/// The source is an endpoint's that cannot have sent this from there.
const FORGED: u32 = 2;

/// Who sends to an endpoint's own address without a tunnel.
#[inline(never)]
fn origin(packet: &Packet, is_native: bool) -> u32 {
    let Some(source) = lookup::ipcache(packet.key.src) else { return ELSEWHERE };
    if source.node == NODE_NONE || source.identity == identity::HOST {
        return ELSEWHERE;
    }
    if is_native && source.node != NODE_SELF {
        return FLEET;
    }
    if source.identity == identity::REMOTE_NODE { ELSEWHERE } else { FORGED }
}

/// What comes without a tunnel from behind another node.
#[inline(never)]
fn from_another_node(packet: &mut Packet, config: &NodeConfig) -> Result<&'static mut Halves, DropReason> {
    flows::begin(packet);
    let endpoint = lookup::endpoint_of(packet.key.dst).ok_or(DropReason::UnknownDestination)?;
    let source = lookup::ipcache(packet.key.src).ok_or(DropReason::UnderlaySource)?;
    let place = Place::Underlay(config.underlay_ifindex);
    let from = Side::stack(place, source.identity, packet.moment.src_shard, config.host_mac);
    let to = Side::endpoint(endpoint, packet.moment.dst_shard);
    Ok(flows::decide(packet, &from, &to))
}

/// Answers to translated flows have a port of ours, frontends have theirs. What has neither is asked nothing more, and ports
/// are told by one look into a small array: this is where all of the node's own traffic comes by.
#[inline(always)]
fn to_the_node_or_a_service(
    packet: &mut Packet,
    config: &NodeConfig,
    ip: &Ipv4,
) -> Result<Verdict, DropReason> {
    rewrite::find_ports(packet, ip);
    let is_answer = ip.dst == config.underlay_v4 && masquerade::is_port(config, packet.key.dst_port_be);
    let is_asked = lookup::is_service_port(packet.key.protocol, packet.key.dst_port_be);
    if !is_answer && !is_asked && !packet.is_error {
        return Ok(Verdict::Leave);
    }
    let is_ours = |entry: &FlowEntry| {
        (entry.flags & REWRITE_DST != 0 || entry.backend != 0) && comes_from(entry, SourceKind::Underlay, 0)
    };
    let known = flows::known(packet, is_ours);
    if known.is_none() && is_left(packet, config, is_answer, is_asked) {
        return Ok(Verdict::Leave);
    }
    deliver::flow(packet, config, ip, known, |packet| decide_anew(packet, config))
}

/// Whether a packet whose flow is not known is the stack's. Otherwise it is noted which service port it goes to, if any.
#[inline(never)]
fn is_left(packet: &mut Packet, config: &NodeConfig, is_answer: bool, is_asked: bool) -> bool {
    if packet.is_error {
        return true;
    }
    if is_asked {
        service::find_or_keep(packet);
        outside::find_at_other_addresses(packet, config);
        if packet.port_number != 0 {
            // A connection that the node has made itself, from a port that became a service's.
            return !opens(packet.tcp_flags) && masquerade::has_connection(packet, &packet.key);
        }
    }
    !is_answer || is_the_nodes_own(packet)
}

#[inline(always)]
fn decide_anew(packet: &mut Packet, config: &NodeConfig) -> Result<&'static mut Halves, DropReason> {
    if packet.port_number != 0 {
        return outside::decide_anew(packet, config);
    }
    // By the stack a packet that answers nothing would be refused, and its flow reset: but there may be a half of it
    // left, which the next packet of who began it finds.
    if !service::turn(packet) {
        return Err(DropReason::NoTranslation);
    }
    flows::begin(packet);
    match lookup::endpoint_of(packet.key.src) {
        Some(endpoint) => from_endpoint::decide_for(packet, config, endpoint),
        None if packet.stale.is_from_outside => {
            outside::decide_turned(packet, config);
            packet.decided()
        }
        None => {
            packet.refuse(DropReason::UnknownDestination);
            service::settle(packet);
            packet.decided()
        }
    }
}

/// Whether a packet to a port of the masquerade is for the node itself: nothing is translated to that port, and the
/// node has a socket there. The node's sockets have no ports in the range, unless somebody bound one by name; before
/// there was a masquerade the kernel may have given one to a connection that still is.
#[inline(always)]
fn is_the_nodes_own(packet: &Packet) -> bool {
    // SAFETY: as in `flows::Flow::entry`; read at once.
    let entry = unsafe { FLOWS_V4.get(packet.key) };
    entry.is_none_or(|entry| entry.flags & REWRITE_DST == 0)
        && (!matches!(packet.key.protocol, TCP | UDP) || masquerade::has_socket(packet, &packet.key))
}

/// Tells a client outside why its packet goes no further: in the name of whom it was for.
#[inline(always)]
pub fn refuse(packet: &Packet, reason: DropReason) -> Option<Verdict> {
    if service::refuse(packet, packet.key.dst, reason) { Some(Verdict::Out(packet.ifindex())) } else { None }
}
