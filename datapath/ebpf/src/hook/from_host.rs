//! What the node's stack sends to endpoints, here and elsewhere: `warren_host`, egress.

use datapath_abi::{
    DropReason, FlowAction, FlowEntry, MacBytes, NODE_NONE, NODE_SELF, NodeConfig, SourceKind,
    TUNNEL_SRC_MAC, identity_number as identity,
};
use datapath_packet::{ETHERTYPE_IPV4, Halves, Ipv4, Place, Side, comes_from};

use crate::{
    context::Packet, decide::flow as flows, forward::execute as deliver, hook::Verdict, lookup, nat::rewrite,
    service, service::nodeport as outside,
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
    let ip = packet.parse_ipv4()?;
    rewrite::find_ports(packet, ip);
    if let Some(flow) = flows::known(packet, |entry| comes_from(entry, SourceKind::Host, 0)) {
        let entry = flow.entry();
        match FlowAction::from_number(entry.action) {
            // Such a flow is counted here: at the endpoint's device it has no entry.
            Some(FlowAction::Local) if rewrite::is_rewritten(entry) => {
                let verdict = send(packet, config, ip, entry)?;
                flow.touch(packet);
                return Ok(verdict);
            }
            Some(FlowAction::Local) => {
                return hand_over(packet, entry.target, entry.dst_mac, entry.src_mac);
            }
            Some(FlowAction::Tunnel) => {
                let verdict = send(packet, config, ip, entry)?;
                flow.touch(packet);
                return Ok(verdict);
            }
            // The node itself answers a client outside.
            Some(FlowAction::Underlay) if rewrite::is_on_both_sides(entry) => {
                let verdict = deliver::by_entry(packet, config, ip, entry)?;
                flow.touch(packet);
                return Ok(verdict);
            }
            // An address that has become this node's own since: decided anew.
            Some(FlowAction::Host | FlowAction::Stack | FlowAction::Underlay) | None => {}
        }
    }
    if let Some(endpoint) = lookup::endpoint_of(packet.key.dst)
        && packet.stale.backend == 0
    {
        return hand_over(packet, endpoint.ifindex, endpoint.mac, endpoint.host_mac);
    }
    if packet.stale.is_reply && packet.stale.is_from_outside {
        outside::as_if_asked(packet, config);
        let halves = packet.decided()?;
        let verdict = deliver::by_entry(packet, config, ip, &halves.forward)?;
        flows::remember(packet, halves)?;
        return Ok(verdict);
    }
    let halves = decide_anew(packet, config)?;
    let verdict = send(packet, config, ip, &halves.forward)?;
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

/// Into the tunnel, or out of a local endpoint's device, as the entry says.
#[inline(always)]
fn send(packet: &Packet, config: &NodeConfig, ip: &Ipv4, entry: &FlowEntry) -> Result<Verdict, DropReason> {
    if rewrite::is_rewritten(entry) {
        rewrite::note_fragment(packet, ip);
        deliver::rewrite(packet, ip, entry)?;
    }
    if entry.action == FlowAction::Local as u8 {
        hand_over(packet, entry.target, entry.dst_mac, entry.src_mac)
    } else {
        deliver::into_tunnel(packet, config, entry)
    }
}

#[inline(always)]
fn decide_anew(packet: &mut Packet, config: &NodeConfig) -> Result<&'static mut Halves, DropReason> {
    flows::begin(packet);
    if !packet.stale.is_reply {
        service::translate(packet);
    }
    if !packet.is_refused() {
        decide_directly(packet, config);
    }
    service::settle(packet);
    packet.decided()
}

#[inline(never)]
fn decide_directly(packet: &mut Packet, config: &NodeConfig) {
    if let Err(reason) = directly(packet, config) {
        packet.refuse(reason);
    }
}

#[inline(always)]
fn directly(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    let to = if let Some(endpoint) = lookup::endpoint_of(packet.key.dst) {
        Side::endpoint(endpoint, packet.moment.dst_shard)
    } else {
        let owner = lookup::owner(packet.key.dst);
        if owner.node == NODE_NONE || owner.node == NODE_SELF {
            return Err(DropReason::UnknownDestination);
        }
        Side::node(owner.node, owner.identity, packet.moment.dst_shard)
    };
    packet.dst_identity = to.identity;
    // The receiver accepts no other source; better to know here. As an endpoint's the packet does not go:
    // nobody has checked here that it is (see `to_endpoint`).
    let owner = lookup::owner(packet.key.src);
    let (place, identity) = match (owner.node, owner.identity) {
        (NODE_SELF, identity::HOST) => (Place::Host, identity::HOST),
        (NODE_SELF, _) => (Place::Stack, identity::UNMANAGED),
        _ => return Err(DropReason::InnerSource),
    };
    let from = Side::stack(place, identity, packet.moment.src_shard, config.host_mac);
    flows::decide(packet, &from, &to);
    Ok(())
}

/// Tells the node's own why its packet goes no further.
#[inline(always)]
pub fn refuse(packet: &Packet, reason: DropReason) -> Option<Verdict> {
    let config = lookup::config().ok()?;
    if !service::refuse(packet, config.gateway_v4, reason) {
        return None;
    }
    packet.write_macs(config.host_mac, TUNNEL_SRC_MAC).ok()?;
    Some(Verdict::Out(config.net_ifindex))
}
