//! What the node's stack sends to endpoints, of this node and of others: `warren_host`, egress.

use datapath_abi::{DropReason, FlowAction, FlowEntry, MacBytes, NodeConfig, SourceKind};
use datapath_packet::{ETHERTYPE_IPV4, comes_from};

use super::forward_packet;
use crate::{
    context::{Origin, Packet},
    decide::flow,
    lookup,
    parse::{self, fragment},
    verdict::Verdict,
};

/// To a local endpoint's device, where `to_endpoint` decides, or into the tunnel.
#[inline(always)]
pub fn handle(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    match parse::ethernet(packet)?.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    parse::ipv4(packet)?;
    fragment::find_ports(packet);
    let known = flow::lookup(packet, |entry| comes_from(entry, SourceKind::Host, 0) && leads_on(entry));
    match known {
        // Such a flow is kept and counted at the endpoint's device.
        Some(flow) if is_left_to_device(flow.entry()) => {
            let entry = flow.entry();
            hand_over(packet, entry.target, entry.dst_mac, entry.src_mac)
        }
        None => match lookup::endpoint_with(packet.key.dst) {
            Some(endpoint) if packet.previous.backend.id == 0 => {
                hand_over(packet, endpoint.ifindex, endpoint.mac, endpoint.host_mac)
            }
            _ => forward_packet(packet, config, None, Origin::Host),
        },
        known => forward_packet(packet, config, known, Origin::Host),
    }
}

/// Whether the entry leads to an endpoint, the tunnel, or an external client that the node itself answers. An address may
/// have become this node's own since; then the packet is decided anew.
#[inline(always)]
fn leads_on(entry: &FlowEntry) -> bool {
    match FlowAction::from_number(entry.action) {
        Some(FlowAction::Local | FlowAction::Tunnel) => true,
        Some(FlowAction::Underlay) => entry.is_translated_at_both_ends(),
        Some(FlowAction::Host | FlowAction::Stack) | None => false,
    }
}

#[inline(always)]
fn is_left_to_device(entry: &FlowEntry) -> bool {
    entry.action == FlowAction::Local as u8 && !entry.is_translated()
}

/// Out of a local endpoint's device: `to_endpoint` counts the packet, and keeps its flow.
#[inline(always)]
fn hand_over(
    packet: &Packet,
    ifindex: u32,
    dst_mac: MacBytes,
    src_mac: MacBytes,
) -> Result<Verdict, DropReason> {
    packet.write_macs(dst_mac, src_mac)?;
    Ok(Verdict::Redirect(ifindex))
}
