//! Which source the flow gets, and by which way it leaves with that source. The port is taken here, after the policy step.

use datapath_abi::{DropReason, FlowAction, NodeConfig, V4, node_flags};
use datapath_packet::{Location, dsr_macs};

use crate::{
    context::{Origin, Packet},
    decide::previous::is_plain_reply,
    lookup,
    nat::masquerade::{self, NO_PORT},
    route,
    service::nodeport,
};

/// Chooses the source (`packet.snat_address`, `packet.snat_port_be`), if the flow gets one.
///
/// # Errors
/// Those of [`masquerade::allocate_port`].
#[inline(always)]
pub fn choose(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    match packet.origin {
        Origin::Endpoint => of_endpoint(packet, config),
        Origin::External => of_external_client(packet, config),
        _ => Ok(()),
    }
}

/// To the world an endpoint goes by this node's underlay address. An endpoint that a service leads to itself would answer
/// itself directly (hairpin): it sees the gateway instead.
#[inline(always)]
fn of_endpoint(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    let dst = packet.key.dst;
    if packet.key.src == dst {
        packet.snat_address = config.gateway_v4;
        masquerade::allocate_port(packet, config)?;
    } else if packet.is_to_remote_node_port || is_masqueraded(packet, config, dst) {
        packet.snat_address = config.underlay_v4;
        masquerade::allocate_port(packet, config)?;
        if packet.snat_port_be != NO_PORT {
            packet.to.receive_from(Location::Underlay(config.underlay_ifindex));
        }
    }
    let may_bypass_stack = packet.to.action == FlowAction::Stack as u8
        && (packet.snat_port_be != NO_PORT || !packet.is_to_outside)
        && config.flags & node_flags::LEGACY_HOST_ROUTING == 0;
    if may_bypass_stack && route::leaves_by_underlay(packet, config) {
        packet.to.send_to(Location::Underlay(config.underlay_ifindex));
        packet.to.receive_from(Location::Underlay(config.underlay_ifindex));
    }
    Ok(())
}

#[inline(always)]
fn is_masqueraded(packet: &Packet, config: &NodeConfig, dst: V4) -> bool {
    packet.is_to_outside
        && !is_plain_reply(packet)
        && masquerade::is_masqueraded(config, dst)
        && lookup::node_at(dst).is_none()
}

/// A backend of this node sees the external client. Another backend sees this node, unless it answers the client itself.
#[inline(always)]
fn of_external_client(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    let is_dsr = nodeport::is_dsr(packet);
    packet.is_dsr_wanted = false;
    match FlowAction::from_number(packet.to.action) {
        Some(FlowAction::Local) => {
            // Both directions pass the stack, or a filter that keeps connections sees one of them only.
            if config.flags & node_flags::LEGACY_HOST_ROUTING != 0 {
                packet.from.send_to(Location::Stack);
            }
            return Ok(());
        }
        Some(FlowAction::Tunnel) if is_dsr => {
            packet.is_dsr_wanted = true;
            (packet.to.dst_mac, packet.to.src_mac) = dsr_macs(packet.key.dst, packet.key.dst_port_be);
            return Ok(());
        }
        Some(FlowAction::Tunnel) => packet.snat_address = config.gateway_v4,
        Some(FlowAction::Host) => packet.snat_address = nodeport::address_for_host(config),
        _ => packet.snat_address = config.underlay_v4,
    }
    masquerade::allocate_port(packet, config)?;
    if packet.snat_port_be == NO_PORT { Err(DropReason::MasqueradePorts) } else { Ok(()) }
}
