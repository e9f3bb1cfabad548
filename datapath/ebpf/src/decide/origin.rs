//! Who sent the packet, and whether the sender may send it. A hook knows by which way a packet came; what that proves of the
//! sender is here. For known flows the entry has kept the proof: [`is_from_node`] and `comes_from` compare it.

use datapath_abi::{
    BACKEND_ELSEWHERE, DropReason, EndpointEntry, FlowEntry, MacBytes, NODE_NONE, NODE_SELF, NodeConfig,
    SourceKind, V4, identity_number as identity, node_flags,
};
use datapath_packet::{FlowEnd, Location, OwnerKind, check_tunnel_source};

use crate::{
    context::{Origin, Packet},
    epoch, lookup,
    maps::FLOWS_V4,
    parse,
    service::dsr,
};

/// Finds the end that sends (`packet.from`), by the proof `origin`.
///
/// # Errors
/// [`DropReason::UnknownEndpoint`], [`DropReason::SourceMac`], [`DropReason::SourceSpoofed`] of workloads,
/// [`DropReason::UnknownNode`], [`DropReason::InnerSource`], [`DropReason::ForgedIdentity`] from the tunnel and the node's
/// stack, [`DropReason::UnderlaySource`] from the underlay, [`DropReason::UnknownDestination`] to another endpoint than the
/// device's.
#[inline(always)]
pub fn check(packet: &mut Packet, config: &NodeConfig, origin: Origin) -> Result<(), DropReason> {
    packet.origin = origin;
    epoch::snapshot_source(packet);
    epoch::snapshot_destination(packet, packet.key.dst);
    packet.from = match origin {
        Origin::Endpoint => endpoint(packet)?,
        Origin::Node => node(packet)?,
        Origin::DsrNode => dsr_node(packet, config)?,
        Origin::Host => host(packet, config)?,
        Origin::Stack => stack(packet, config)?,
        Origin::External => external(packet, config)?,
        Origin::Native => native(packet, config)?,
        // Replies are known by their flow. Nothing else is taken: `previous::apply`.
        Origin::Unproven => underlay(config, packet.src_identity),
    };
    packet.src_identity = packet.from.identity;
    Ok(())
}

/// The same for the original direction of the flow that the packet replies to: who had sent that. The flow's previous entry
/// says by which way it had come.
///
/// # Errors
/// As [`check`].
#[inline(always)]
pub fn check_original(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    packet.from = if packet.previous.backend.id == BACKEND_ELSEWHERE {
        packet.origin = Origin::DsrNode;
        (packet.dsr_address, packet.dsr_port_be) =
            (packet.previous.backend.address, packet.previous.backend.port_be);
        // SAFETY: as in `Flow::entry`; read at once. Without that entry nobody knows the node: its next packet says it.
        let node = match unsafe { FLOWS_V4.get(packet.key) } {
            Some(entry) if entry.source_kind == SourceKind::Node as u8 => entry.source,
            _ => NODE_NONE,
        };
        dsr_client(packet, config, node)?
    } else if let Some(endpoint) = lookup::endpoint_with(packet.key.src) {
        packet.origin = Origin::Endpoint;
        FlowEnd::endpoint(endpoint)
    } else if packet.previous.is_of_external_client {
        packet.origin = Origin::External;
        external(packet, config)?
    } else if matches!(lookup::owner(packet.key.src).kind, OwnerKind::ThisNode) {
        packet.origin = Origin::Host;
        FlowEnd::stack(Location::Host, identity::HOST, config.host_mac)
    } else {
        return Err(DropReason::UnknownDestination);
    };
    packet.src_identity = packet.from.identity;
    Ok(())
}

/// The endpoint behind the device, which has sent a frame from its own Ethernet address.
///
/// # Errors
/// [`DropReason::UnknownEndpoint`], [`DropReason::SourceMac`].
#[inline(always)]
pub fn endpoint_of_device(
    packet: &mut Packet,
    source: MacBytes,
) -> Result<&'static EndpointEntry, DropReason> {
    let endpoint = lookup::endpoint_at(packet.ifindex())?;
    packet.src_identity = endpoint.identity;
    if source == endpoint.mac { Ok(endpoint) } else { Err(DropReason::SourceMac) }
}

/// A workload sends from its own addresses only.
#[inline(always)]
fn endpoint(packet: &mut Packet) -> Result<FlowEnd, DropReason> {
    let ethernet = parse::ethernet(packet)?;
    let endpoint = endpoint_of_device(packet, ethernet.macs.src)?;
    if packet.key.src == endpoint.address_v4 {
        Ok(FlowEnd::endpoint(endpoint))
    } else {
        Err(DropReason::SourceSpoofed)
    }
}

/// A member sends from addresses that are behind it.
#[inline(always)]
fn node(packet: &Packet) -> Result<FlowEnd, DropReason> {
    let node = sending_node(packet)?;
    check_tunnel_source(node, &lookup::owner(packet.key.src), packet.vni)?;
    Ok(FlowEnd::node(node, packet.vni))
}

#[inline(always)]
fn sending_node(packet: &Packet) -> Result<u32, DropReason> {
    match lookup::node_at(packet.outer_src) {
        Some(node) if node != NODE_NONE && node != NODE_SELF => Ok(node),
        _ => Err(DropReason::UnknownNode),
    }
}

/// A member passes on what an external client has sent to a service.
#[inline(always)]
fn dsr_node(packet: &Packet, config: &NodeConfig) -> Result<FlowEnd, DropReason> {
    let node = sending_node(packet)?;
    if packet.vni != identity::WORLD {
        return Err(DropReason::ForgedIdentity);
    }
    dsr_client(packet, config, node)
}

/// The external client itself, whose packets come by a node's tunnel and whose replies leave by the underlay.
#[inline(always)]
fn dsr_client(packet: &Packet, config: &NodeConfig, node: u32) -> Result<FlowEnd, DropReason> {
    let client = lookup::owner(packet.key.src);
    // A member vouches for its own addresses; for others only if it serves them.
    if !matches!(client.kind, OwnerKind::Outside) || !dsr::is_served_by(packet, node) {
        return Err(DropReason::InnerSource);
    }
    let mut end = underlay(config, client.identity);
    if config.flags & node_flags::LEGACY_HOST_ROUTING != 0 {
        end.send_to(Location::Stack);
    }
    end.receive_from(Location::Node(node));
    Ok(end)
}

/// The node sends as itself, and for addresses of its own CIDRs. An endpoint's address proves nothing here, where nobody has
/// checked it. From others' addresses the receiver accepts nothing, which is better known here.
#[inline(always)]
fn host(packet: &Packet, config: &NodeConfig) -> Result<FlowEnd, DropReason> {
    let (location, identity) = match lookup::owner(packet.key.src).kind {
        OwnerKind::ThisNode => (Location::Host, identity::HOST),
        OwnerKind::ThisNodesCidr => (Location::Stack, identity::UNMANAGED),
        OwnerKind::OtherNode | OwnerKind::Outside => return Err(DropReason::InnerSource),
    };
    Ok(FlowEnd::stack(location, identity, config.host_mac))
}

/// The node's stack delivers to the endpoint behind the device, for whoever the source address belongs to. Only that endpoint
/// is reached there, so that the other end (`packet.to`) is known as well.
///
/// Replies go back to the stack: it may have translated addresses. An endpoint's address proves nothing here, where nobody
/// has checked it: a packet from the underlay may bear it. The endpoint's own device or node alone proves its identity (P7).
/// Without a tunnel there is no other proof than the address, and that the packet came by the underlay interface.
#[inline(always)]
fn stack(packet: &mut Packet, config: &NodeConfig) -> Result<FlowEnd, DropReason> {
    let endpoint = lookup::endpoint_at(packet.ifindex())?;
    if packet.key.dst != endpoint.address_v4 {
        return Err(DropReason::UnknownDestination);
    }
    packet.to = FlowEnd::endpoint(endpoint);
    let is_proven =
        config.flags & node_flags::NATIVE != 0 && packet.ingress_ifindex() == config.underlay_ifindex;
    let source = lookup::owner(packet.key.src);
    let (location, identity) = match source.kind {
        OwnerKind::ThisNode => (Location::Host, identity::HOST),
        OwnerKind::Outside => (Location::Stack, source.identity),
        OwnerKind::OtherNode if is_proven => (Location::Stack, source.identity),
        OwnerKind::OtherNode | OwnerKind::ThisNodesCidr => (Location::Stack, identity::UNMANAGED),
    };
    Ok(FlowEnd::stack(location, identity, config.host_mac))
}

/// A client comes from outside to a service; with an endpoint's address only where there is no tunnel.
#[inline(always)]
fn external(packet: &mut Packet, config: &NodeConfig) -> Result<FlowEnd, DropReason> {
    let client = lookup::owner(packet.key.src);
    let identity = match client.kind {
        OwnerKind::Outside => client.identity,
        // A node proves nothing by its address here, and needs to prove nothing.
        OwnerKind::OtherNode if client.is_node() => identity::WORLD,
        OwnerKind::OtherNode if config.flags & node_flags::NATIVE != 0 => client.identity,
        OwnerKind::OtherNode | OwnerKind::ThisNode | OwnerKind::ThisNodesCidr => {
            return Err(DropReason::UnderlaySource);
        }
    };
    packet.is_fleet_client = !matches!(client.kind, OwnerKind::Outside);
    Ok(underlay(config, identity))
}

/// Without a tunnel an endpoint of another node is known by its address: there is no other proof.
#[inline(always)]
fn native(packet: &Packet, config: &NodeConfig) -> Result<FlowEnd, DropReason> {
    let source = lookup::owner(packet.key.src);
    match source.kind {
        OwnerKind::OtherNode => Ok(underlay(config, source.identity)),
        _ => Err(DropReason::UnderlaySource),
    }
}

#[inline(always)]
fn underlay(config: &NodeConfig, identity: u32) -> FlowEnd {
    FlowEnd::stack(Location::Underlay(config.underlay_ifindex), identity, config.host_mac)
}

/// Whether the entry was made for packets that come as this one came by the tunnel: from that node, as that identity, for
/// that backend. The node's address is looked up for every packet, so that a node that left or moved is noticed.
///
/// An error about the flow may come from elsewhere behind the node, which is then what is checked.
#[inline(always)]
pub fn is_from_node(packet: &TunnelSource, entry: &FlowEntry) -> bool {
    if entry.source_kind != SourceKind::Node as u8
        || lookup::underlay_of(entry.source) != Some(packet.outer_src)
        || !dsr::is_same_backend(entry, packet.is_dsr, packet.dsr_address, packet.dsr_port_be)
    {
        return false;
    }
    if packet.is_icmp_error {
        may_send_error(entry, packet.src, packet.vni)
    } else if entry.backend == BACKEND_ELSEWHERE {
        packet.vni == identity::WORLD
    } else {
        entry.src_identity == packet.vni
    }
}

/// What [`is_from_node`] compares with an entry.
#[derive(Clone, Copy)]
pub struct TunnelSource {
    outer_src: V4,
    vni: u32,
    src: V4,
    dsr_address: V4,
    dsr_port_be: [u8; 2],
    is_dsr: bool,
    is_icmp_error: bool,
}

impl TunnelSource {
    /// Of a packet that came by the tunnel.
    #[inline(always)]
    pub fn of(packet: &Packet) -> Self {
        Self {
            outer_src: packet.outer_src,
            vni: packet.vni,
            src: packet.key.src,
            dsr_address: packet.dsr_address,
            dsr_port_be: packet.dsr_port_be,
            is_dsr: packet.is_dsr,
            is_icmp_error: packet.is_icmp_error,
        }
    }
}

/// Whether the entry's node may send an error from `src`. An error about an external client's flow may come from any router
/// outside. (Inline it would take room from the deepest chain of calls.)
#[inline(never)]
fn may_send_error(entry: &FlowEntry, src: V4, vni: u32) -> bool {
    let source = lookup::owner(src);
    if entry.backend == BACKEND_ELSEWHERE {
        return vni == identity::WORLD && matches!(source.kind, OwnerKind::Outside);
    }
    check_tunnel_source(entry.source, &source, vni).is_ok()
}
