//! What the node's stack sends to endpoints, here and elsewhere: `warren_host`, egress.

use datapath_abi::{
    DropReason, FlowAction, MacBytes, NODE_NONE, NODE_SELF, NodeConfig, SourceKind,
    identity_number as identity,
};
use datapath_packet::{ETHERTYPE_IPV4, Halves, Place, Side, comes_from};

use crate::{
    deliver,
    flows::{self, Moment},
    lookup,
    packet::Packet,
    programs::Verdict,
};

/// To a local endpoint's device, where `to_endpoint` decides, or into the tunnel.
#[inline(always)]
pub fn decide(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    match packet.ethernet()?.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    packet.parse_ipv4()?;
    if let Some(flow) = flows::known(packet, |entry| comes_from(entry, SourceKind::Host, 0)) {
        let entry = flow.entry();
        match FlowAction::from_number(entry.action) {
            Some(FlowAction::Local) => {
                return hand_over(packet, entry.target, entry.dst_mac, entry.src_mac);
            }
            Some(FlowAction::Tunnel) => {
                let verdict = deliver::into_tunnel(packet, config, entry)?;
                flow.touch(packet);
                return Ok(verdict);
            }
            // An address that has become this node's own since: decided anew.
            Some(FlowAction::Host | FlowAction::Stack | FlowAction::Underlay) | None => {}
        }
    }
    if let Some(endpoint) = lookup::endpoint_of(packet.key.dst) {
        return hand_over(packet, endpoint.ifindex, endpoint.mac, endpoint.host_mac);
    }
    let halves = decide_anew(packet, config)?;
    let verdict = deliver::into_tunnel(packet, config, &halves.forward)?;
    flows::remember(packet, halves)?;
    Ok(verdict)
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
    Ok(Verdict::Out(ifindex))
}

#[inline(never)]
fn decide_anew(packet: &mut Packet, config: &NodeConfig) -> Result<&'static mut Halves, DropReason> {
    let moment = Moment::of(packet);
    let to = match lookup::ipcache(packet.key.dst) {
        Some(entry) if entry.node != NODE_NONE && entry.node != NODE_SELF => {
            Side::node(entry.node, entry.identity, moment.dst_shard)
        }
        _ => return Err(DropReason::UnknownDestination),
    };
    packet.dst_identity = to.identity;
    // The receiver accepts no other source; better to know here. As an endpoint's the packet does not go:
    // nobody has checked here that it is (see `to_endpoint`).
    let (place, identity) = match lookup::ipcache(packet.key.src) {
        Some(entry) if entry.node == NODE_SELF && entry.identity == identity::HOST => {
            (Place::Host, identity::HOST)
        }
        Some(entry) if entry.node == NODE_SELF => (Place::Stack, identity::UNMANAGED),
        _ => return Err(DropReason::InnerSource),
    };
    let from = Side::stack(place, identity, moment.src_shard, config.host_mac);
    Ok(flows::decide(packet, &from, &to, &moment))
}
