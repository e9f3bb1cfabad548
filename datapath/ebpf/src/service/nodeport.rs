//! Clients outside of the fleet, who come by the underlay interface to a frontend of a service.
//!
//! A backend here sees the client, and answers past this node's stack. One behind the tunnel sees this node's gateway with
//! a port of the masquerade's range, and one that is reached without a tunnel the node's underlay address likewise: what
//! they answer comes back here. All of it is in the flow's two entries.

use aya_ebpf::btf_maps::lpm_trie::Key;
use datapath_abi::{
    DropReason, FlowAction, FlowEntry, NODE_NONE, NODE_SELF, NodeConfig, SOURCE_SERVICE_BITS, Source,
    SourceKind, TUNNEL_DST_MAC, V4, identity_number as identity, node_flags, service_flags,
};
use datapath_packet::{Halves, Place, Side, direct_macs, opens};

use crate::{
    context::Packet,
    decide::flow as flows,
    lookup,
    maps::{SERVICES, SOURCES_LPM_V4},
    nat::masquerade::{self, NO_PORT},
    service,
};

/// Whether an entry is of a client outside: what is to be done with what it sends, or with what it gets.
#[inline(always)]
pub fn is_client_of(entry: &FlowEntry, is_reply: bool) -> bool {
    if is_reply {
        entry.action == FlowAction::Underlay as u8 || entry.action == FlowAction::Stack as u8
    } else {
        entry.source_kind == SourceKind::Underlay as u8
    }
}

/// Decides about what a client outside sends to the service port `packet.port_number`.
///
/// # Errors
/// [`DropReason::UnderlaySource`], [`DropReason::ServiceSource`], [`DropReason::NoBackend`], and those of
/// [`masquerade::port_of`].
#[inline(always)]
pub fn decide_anew(packet: &mut Packet, config: &NodeConfig) -> Result<&'static mut Halves, DropReason> {
    flows::begin(packet);
    decide_for(packet, config);
    packet.decided()
}

/// What a backend answers to a client outside, decided as if that had sent; refused if there is no such flow (any more), or
/// for what its client would be.
#[inline(always)]
pub fn as_if_asked(packet: &mut Packet, config: &NodeConfig) {
    if !service::turn(packet) {
        return packet.refuse(DropReason::NoTranslation);
    }
    flows::begin(packet);
    decide_turned(packet, config);
}

/// The same of a packet that is turned, and whose moment has begun.
#[inline(always)]
pub fn decide_turned(packet: &mut Packet, config: &NodeConfig) {
    service::find_or_keep(packet);
    decide_for(packet, config);
}

/// A port of the node is one of each of its addresses, and not only of those that the programs are told.
#[inline(always)]
pub fn find_at_other_addresses(packet: &mut Packet, config: &NodeConfig) {
    if packet.port_number != 0 {
        return;
    }
    let number = service::number_at(packet, [0; 4]);
    if number != 0 && lookup::is_own(packet, config, packet.key.dst) {
        packet.port_number = number;
        packet.is_at_other_address = true;
    }
}

#[inline(never)]
fn decide_for(packet: &mut Packet, config: &NodeConfig) {
    admit(packet, config);
    if !packet.is_refused() {
        service::translate_to(packet);
    }
    if !packet.is_refused() {
        decide_directly(packet, config);
    }
    service::settle(packet);
}

/// Who the client is, and whether it may use the service.
#[inline(never)]
fn admit(packet: &mut Packet, config: &NodeConfig) {
    let is_native = config.flags & node_flags::NATIVE != 0;
    let client = lookup::owner(packet.key.src);
    packet.src_identity = match (client.node, client.identity) {
        (NODE_NONE, identity::UNKNOWN) => identity::WORLD,
        (NODE_NONE, identity) => identity,
        // A node proves nothing by its address here, and needs to prove nothing. This one does not come from outside.
        (node, identity::HOST | identity::REMOTE_NODE) if node != NODE_SELF => identity::WORLD,
        (node, identity) if is_native && node != NODE_SELF => identity,
        _ => return packet.refuse(DropReason::UnderlaySource),
    };
    packet.is_from_fleet = client.node != NODE_NONE;
    if packet.port_number == 0 {
        return packet.refuse(DropReason::NoTranslation);
    }
    let Some(service) = SERVICES.get(packet.port_number) else { return };
    // Somebody of the fleet would be answered by another way than it asked.
    // And another node would not know the node by an address that the fleet does not.
    packet.is_direct =
        service.flags & service_flags::DSR != 0 && !packet.is_from_fleet && !packet.is_at_other_address;
    if service.flags & service_flags::SOURCES != 0
        && !packet.is_from_fleet
        && !is_in_range(packet.port_number, packet.key.src)
    {
        packet.refuse(DropReason::ServiceSource);
    }
}

#[inline(always)]
fn is_in_range(service: u32, address: V4) -> bool {
    let bits = SOURCE_SERVICE_BITS + 8 * size_of::<V4>() as u32;
    SOURCES_LPM_V4.get(&Key::new(bits, Source { service, address })).is_some()
}

#[inline(never)]
fn decide_directly(packet: &mut Packet, config: &NodeConfig) {
    if let Err(reason) = directly(packet, config) {
        packet.refuse(reason);
    }
}

/// The backend being known: `packet.key` leads there.
#[inline(always)]
fn directly(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    let (client_shard, shard) = (packet.moment.src_shard, packet.moment.dst_shard);
    let underlay = Place::Underlay(config.underlay_ifindex);
    let client = |place| Side::stack(place, packet.src_identity, client_shard, config.host_mac);
    if let Some(endpoint) = lookup::endpoint_of(packet.key.dst) {
        // By the stack it goes both ways, or a filter that keeps connections sees half of this one.
        let by_stack = config.flags & node_flags::LEGACY_HOST_ROUTING != 0;
        let client = client(if by_stack { Place::Stack } else { underlay });
        packet.is_direct = false;
        let halves = flows::decide(packet, &client, &Side::endpoint(endpoint, shard));
        halves.forward.source_kind = SourceKind::Underlay as u8;
        return Ok(());
    }
    let owner = lookup::owner(packet.key.dst);
    let (source, to) = match (owner.node, owner.identity) {
        (NODE_SELF, identity::HOST) => {
            (answered_by_host(config), Side::stack(Place::Host, identity::HOST, shard, config.host_mac))
        }
        (NODE_SELF, _) => return Err(DropReason::NoBackend),
        (NODE_NONE, identity::UNKNOWN) => {
            (config.underlay_v4, Side::stack(underlay, identity::WORLD, shard, config.host_mac))
        }
        (node, identity) if node == NODE_NONE || config.flags & node_flags::NATIVE != 0 => {
            (config.underlay_v4, Side::stack(underlay, identity, shard, config.host_mac))
        }
        (node, identity) => (config.gateway_v4, Side::node(node, identity, shard)),
    };
    let client = client(underlay);
    packet.dst_identity = to.identity;
    if is_direct(packet) && to.dst_mac == TUNNEL_DST_MAC {
        let (dst_mac, src_mac) = direct_macs(packet.key.dst, packet.key.dst_port_be);
        packet.is_direct = true;
        flows::decide(packet, &client, &Side { dst_mac, src_mac, ..to });
        return Ok(());
    }
    packet.is_direct = false;
    let port_be = masquerade::port_of(packet, config, source)?;
    if port_be == NO_PORT {
        return Err(DropReason::MasqueradePorts);
    }
    flows::decide(packet, &client, &to).replace_source(&packet.key, source, port_be);
    Ok(())
}

/// Whom the node itself sees: an address that its stack sends out by `warren_host`, and so by `from_host`. The one before the
/// gateway, which is no endpoint's: that of the network.
#[inline(always)]
fn answered_by_host(config: &NodeConfig) -> V4 {
    u32::from_be_bytes(config.gateway_v4).wrapping_sub(1).to_be_bytes()
}

/// Whether the backend answers the client itself: as the service says, but for a flow that is under way.
#[inline(always)]
fn is_direct(packet: &Packet) -> bool {
    let stale = &packet.stale;
    if stale.backend == 0 || stale.backend != packet.service.backend || opens(packet.tcp_flags) {
        return packet.is_direct;
    }
    stale.is_direct || packet.is_direct && !stale.is_on_both_sides
}
