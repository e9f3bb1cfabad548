//! Direct server return: a client outside sent to a frontend of another node, which sent it on untouched, with the backend
//! that it chose in the inner Ethernet addresses. This node does the rest: it translates, and answers the client itself, from
//! the frontend.

use datapath_abi::{
    BACKEND_ELSEWHERE, DropReason, FlowEntry, NODE_NONE, NODE_SELF, NodeConfig, SourceKind, V4,
    identity_number as identity, node_flags, service_flags,
};
use datapath_packet::{Macs, Place, Side, direct_place};

use crate::{
    context::Packet,
    decide::flow as flows,
    lookup,
    maps::{FLOWS_V4, SERVICES},
    service,
};

/// Notes the backend that a packet's Ethernet addresses name, if they do.
#[inline(always)]
pub fn note(packet: &mut Packet, macs: &Macs) {
    let (is_direct, address, port_be) = direct_place(macs);
    if is_direct {
        packet.is_direct = true;
        packet.direct_address = address;
        packet.direct_port_be = port_be;
    }
}

/// Whether what the tunnel brought is what the entry is for, as far as another node has chosen the backend.
#[inline(always)]
pub fn is_same(entry: &FlowEntry, (is_direct, address, port_be): (bool, V4, [u8; 2])) -> bool {
    if entry.backend != BACKEND_ELSEWHERE {
        return !is_direct;
    }
    is_direct && entry.rewrite_dst == address && entry.rewrite_dst_port_be == port_be
}

/// Decides about what another node sent on.
#[inline(never)]
pub fn decide_anew(packet: &mut Packet, config: &NodeConfig) {
    let node = lookup::node_at(packet.outer_src).unwrap_or(NODE_NONE);
    if node == NODE_NONE || node == NODE_SELF {
        return packet.refuse(DropReason::UnknownNode);
    }
    if packet.vni != identity::WORLD {
        return packet.refuse(DropReason::ForgedIdentity);
    }
    decide_for(packet, config, node);
}

/// Decides again about what a backend here answers to such a client.
#[inline(never)]
pub fn as_if_asked(packet: &mut Packet, config: &NodeConfig) {
    packet.direct_address = packet.stale.address;
    packet.direct_port_be = packet.stale.port_be;
    if !service::turn(packet) {
        return packet.refuse(DropReason::NoTranslation);
    }
    flows::begin(packet);
    // SAFETY: as in `flows::Flow::entry`; read at once. Without that half nobody knows the node: its next packet says it.
    let node = match unsafe { FLOWS_V4.get(packet.key) } {
        Some(entry) if entry.source_kind == SourceKind::Node as u8 => entry.source,
        _ => NODE_NONE,
    };
    decide_for(packet, config, node);
    service::settle(packet);
}

/// `packet.key` is of what the client sent, by this node of the fleet.
#[inline(never)]
fn decide_for(packet: &mut Packet, config: &NodeConfig, node: u32) {
    flows::go_to(packet, packet.direct_address);
    let client = lookup::owner(packet.key.src);
    // A member vouches for its own addresses; for others only if it serves them.
    if client.node != NODE_NONE || !is_served_by(packet, node) {
        return packet.refuse(DropReason::InnerSource);
    }
    let Some(endpoint) = lookup::endpoint_of(packet.direct_address) else {
        return packet.refuse(DropReason::UnknownDestination);
    };
    let identity = if client.identity == identity::UNKNOWN { identity::WORLD } else { client.identity };
    let by_stack = config.flags & node_flags::LEGACY_HOST_ROUTING != 0;
    let place = if by_stack { Place::Stack } else { Place::Underlay(config.underlay_ifindex) };
    let from = Side::stack(place, identity, packet.moment.src_shard, config.host_mac);
    let to = Side::endpoint(endpoint, packet.moment.dst_shard);
    let halves = flows::decide(packet, &from, &to);
    halves.forward.source_kind = SourceKind::Node as u8;
    halves.forward.source = node;
    let frontend = (packet.key.dst, packet.key.dst_port_be);
    halves.serve(BACKEND_ELSEWHERE, frontend, (packet.direct_address, packet.direct_port_be));
}

/// Whether the packet goes to a frontend of a service whose backends answer themselves: one of everybody's, or a port of
/// that node.
#[inline(never)]
fn is_served_by(packet: &Packet, node: u32) -> bool {
    let mut number = service::number_at(packet, packet.key.dst);
    if number == 0 {
        let owner = lookup::owner(packet.key.dst);
        if owner.identity == identity::REMOTE_NODE && (owner.node == node || node == NODE_NONE) {
            number = service::number_at(packet, [0; 4]);
        }
    }
    SERVICES.get(number).is_some_and(|service| service.flags & service_flags::DSR != 0)
}
