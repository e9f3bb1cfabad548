//! What the node's stack delivers to a workload: host side of its device, egress.

use datapath_abi::{
    DropReason, FlowAction, FlowEntry, IpcacheEntry, NODE_NONE, NODE_SELF, NodeConfig, SourceKind,
    identity_number as identity,
};
use datapath_packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, Halves, Place, Side, comes_from};

use crate::{
    flows::{self, Moment},
    lookup,
    packet::Packet,
    programs::Verdict,
};

/// Out of the device, or not.
#[inline(always)]
pub fn decide(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    match packet.ethernet()?.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config),
        // Our own answers for the gateway come by here.
        ETHERTYPE_ARP => Ok(Verdict::Pass),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    packet.parse_ipv4()?;
    // By its routes the stack may choose an interface; only the endpoint's own is right.
    let here = packet.ifindex();
    let is_for_here = |entry: &FlowEntry| {
        comes_from(entry, SourceKind::Host, 0)
            && entry.action == FlowAction::Local as u8
            && entry.target == here
    };
    if let Some(flow) = flows::known(packet, is_for_here) {
        flow.touch(packet);
        return Ok(Verdict::Pass);
    }
    let halves = decide_anew(packet, config)?;
    flows::remember(packet, halves)?;
    Ok(Verdict::Pass)
}

#[inline(never)]
fn decide_anew(packet: &mut Packet, config: &NodeConfig) -> Result<&'static mut Halves, DropReason> {
    let moment = Moment::of(packet);
    let endpoint = lookup::endpoint_at(packet.ifindex())?;
    if packet.key.dst != endpoint.address_v4 {
        return Err(DropReason::UnknownDestination);
    }
    // What this node's stack sends for others comes back to the stack, whoever they are: it may have
    // translated their addresses. An endpoint's address proves nothing here, where nobody has checked it: a
    // packet from the underlay may bear it. Its identity comes from its own device or node alone (P7).
    let (place, identity) = match lookup::ipcache(packet.key.src) {
        Some(IpcacheEntry { node: NODE_SELF, identity: identity::HOST }) => (Place::Host, identity::HOST),
        Some(IpcacheEntry { node: NODE_NONE, identity }) => (Place::Stack, identity),
        Some(_) => (Place::Stack, identity::UNMANAGED),
        None => (Place::Stack, identity::WORLD),
    };
    let from = Side::stack(place, identity, moment.src_shard, config.host_mac);
    let to = Side::endpoint(endpoint, moment.dst_shard);
    flows::decide(packet, &from, &to, &moment)
}
