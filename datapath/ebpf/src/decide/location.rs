//! Where the packet goes.

use datapath_abi::{
    DropReason, FlowAction, NodeConfig, SourceKind, V4, identity_number as identity, node_flags,
};
use datapath_packet::{FlowEnd, Location, Owner, OwnerKind, UDP, is_unicast};

use crate::{
    context::{Origin, Packet},
    lookup,
    nat::masquerade,
    service::frontend,
};

/// Finds the end that the packet goes to (`packet.to`), as far as its sender may reach it. Where the stack delivers, the
/// device has told.
///
/// # Errors
/// [`DropReason::UnknownDestination`], [`DropReason::NoTranslation`], [`DropReason::NoBackend`],
/// [`DropReason::TunnelPort`].
#[inline(always)]
pub fn find(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    if packet.origin == Origin::Stack {
        packet.dst_identity = packet.to.identity;
        return Ok(());
    }
    let address = packet.key.dst;
    let is_from_endpoint = packet.origin == Origin::Endpoint;
    if is_from_endpoint && !is_unicast(address) {
        return Err(DropReason::UnknownDestination);
    }
    if let Some(endpoint) = lookup::endpoint_with(address) {
        packet.to = FlowEnd::endpoint(endpoint);
    } else {
        let owner = lookup::owner(address);
        packet.to = elsewhere(packet, config, &owner)?;
        packet.is_to_outside = matches!(owner.kind, OwnerKind::Outside);
        if is_from_endpoint {
            packet.dst_identity = packet.to.identity;
            find_remote_node_port(packet, config);
            check_tunnel_port(packet, config, &owner)?;
        }
    }
    // The node that sent a reply knows the identity of its endpoint first.
    if packet.is_evaluated_as_original && packet.replier.source_kind == SourceKind::Node as u8 {
        packet.to.identity = packet.replier.identity;
    }
    packet.dst_identity = packet.to.identity;
    Ok(())
}

/// The location of an address that no endpoint of this node has, for each kind of sender.
#[inline(always)]
fn elsewhere(packet: &Packet, config: &NodeConfig, owner: &Owner) -> Result<FlowEnd, DropReason> {
    let is_native = config.flags & node_flags::NATIVE != 0;
    let stack = |location| Ok(FlowEnd::stack(location, owner.identity, config.host_mac));
    match (packet.origin, owner.kind) {
        // A reply to an external client one of whose entries is gone: the stack would reset the connection.
        (Origin::Node, OwnerKind::ThisNode)
            if packet.key.dst == config.gateway_v4 && masquerade::is_unclaimed(packet, config) =>
        {
            Err(DropReason::NoTranslation)
        }
        (Origin::Endpoint | Origin::Node | Origin::External, OwnerKind::ThisNode) => stack(Location::Host),
        (Origin::Endpoint, OwnerKind::Outside) => stack(Location::Stack),
        (Origin::External, OwnerKind::Outside) => stack(Location::Underlay(config.underlay_ifindex)),
        (Origin::Endpoint, OwnerKind::OtherNode) if is_native => stack(Location::Stack),
        (Origin::External, OwnerKind::OtherNode) if is_native => {
            stack(Location::Underlay(config.underlay_ifindex))
        }
        (Origin::Endpoint | Origin::Host | Origin::External, OwnerKind::OtherNode) => {
            Ok(FlowEnd::node(owner.node, owner.identity))
        }
        (Origin::External, OwnerKind::ThisNodesCidr) => Err(DropReason::NoBackend),
        // Nothing goes from tunnel to tunnel, and the node's stack sends elsewhere by itself.
        _ => Err(DropReason::UnknownDestination),
    }
}

/// What would go by the tunnel to a node port of another node goes by the stack, in the name of this node. To the other node
/// it is an external client: it gets the backends of those, and nothing goes from tunnel to tunnel.
#[inline(always)]
fn find_remote_node_port(packet: &mut Packet, config: &NodeConfig) {
    if packet.to.action == FlowAction::Tunnel as u8
        && packet.to.identity == identity::REMOTE_NODE
        && frontend::service_id_at(packet, [0; 4]) != 0
        && lookup::node_at(packet.key.dst).is_some()
    {
        packet.is_to_remote_node_port = true;
        packet.to = FlowEnd::stack(Location::Stack, identity::REMOTE_NODE, config.host_mac);
    }
}

/// A workload sends nothing to the tunnel port of a node: to a node's listed address it would be taken for the tunnel's own
/// packet; to another address of a node as well, once masquerade or the host has given it this node's address.
#[inline(always)]
fn check_tunnel_port(packet: &Packet, config: &NodeConfig, owner: &Owner) -> Result<(), DropReason> {
    let is_tunnel_port = packet.key.protocol == UDP
        && u16::from_be_bytes(packet.key.dst_port_be) == config.tunnel_port
        && (packet.is_to_outside || is_node(packet.key.dst, owner));
    if is_tunnel_port { Err(DropReason::TunnelPort) } else { Ok(()) }
}

/// Whether an address is a node's own, this one's or another's.
#[inline(always)]
pub fn is_node(address: V4, owner: &Owner) -> bool {
    owner.is_node() || lookup::node_at(address).is_some()
}
