//! What the node's stack delivers to a workload: host side of its device, egress.

use datapath_abi::{
    DropReason, FlowAction, FlowEntry, IpcacheEntry, NODE_NONE, NODE_SELF, NodeConfig, SourceKind,
    identity_number as identity, node_flags,
};
use datapath_packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, Halves, Place, Side, comes_from};

use crate::{context::Packet, decide::flow as flows, hook::Verdict, lookup, maps::FLOWS_V4, nat::rewrite};

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
    let by_stack = config.flags & node_flags::LEGACY_HOST_ROUTING != 0;
    let ingress = packet.ingress_ifindex();
    let is_for_here = |entry: &FlowEntry| {
        (comes_from(entry, SourceKind::Host, 0) || by_stack && came_by(config, entry, ingress))
            && entry.action == FlowAction::Local as u8
            && entry.target == here
    };
    if let Some(flow) = flows::known(packet, is_for_here) {
        // What another program has let in was counted there.
        if comes_from(flow.entry(), SourceKind::Host, 0) {
            flow.touch(packet);
        }
        return Ok(Verdict::Pass);
    }
    if is_translated(packet) {
        return Ok(Verdict::Pass);
    }
    let halves = decide_anew(packet, config)?;
    flows::remember(packet, halves)?;
    Ok(Verdict::Pass)
}

/// Whether what came to the stack by the interface `ingress` is what the entry is for: its program has checked it, and
/// has left the delivery to the stack.
#[inline(always)]
fn came_by(config: &NodeConfig, entry: &FlowEntry, ingress: u32) -> bool {
    let expected = match SourceKind::from_number(entry.source_kind) {
        Some(SourceKind::Endpoint) => entry.source,
        Some(SourceKind::Node) => config.vxlan_ifindex,
        Some(SourceKind::Underlay) => config.underlay_ifindex,
        Some(SourceKind::Host) | None => 0,
    };
    ingress != 0 && ingress == expected
}

/// Whether this belongs to a flow with the endpoint that was translated before it came here: an answer that `from_netdev`
/// or `from_overlay` has left to the stack, or what `from_host` hands over of a service's. It has no entry of its own, and
/// must not get one in the place of its flow's.
#[inline(never)]
fn is_translated(packet: &Packet) -> bool {
    // SAFETY: as in `flows::Flow::entry`; read at once.
    unsafe { FLOWS_V4.get(packet.key.reverse()) }.is_some_and(|entry| {
        rewrite::is_rewritten(entry)
            && comes_from(entry, SourceKind::Endpoint, packet.ifindex())
            && flows::is_valid(entry)
    })
}

#[inline(never)]
fn decide_anew(packet: &mut Packet, config: &NodeConfig) -> Result<&'static mut Halves, DropReason> {
    flows::begin(packet);
    let endpoint = lookup::endpoint_at(packet.ifindex())?;
    if packet.key.dst != endpoint.address_v4 {
        return Err(DropReason::UnknownDestination);
    }
    // What this node's stack sends for others comes back to the stack, whoever they are: it may have
    // translated their addresses. An endpoint's address proves nothing here, where nobody has checked it: a
    // packet from the underlay may bear it. Its identity comes from its own device or node alone (P7).
    // Without a tunnel there is no other proof than the address, and that it came by the underlay interface.
    let is_believed =
        config.flags & node_flags::NATIVE != 0 && packet.ingress_ifindex() == config.underlay_ifindex;
    let (place, identity) = match lookup::ipcache(packet.key.src) {
        Some(IpcacheEntry { node: NODE_SELF, identity: identity::HOST }) => (Place::Host, identity::HOST),
        Some(IpcacheEntry { node: NODE_NONE, identity }) => (Place::Stack, identity),
        Some(IpcacheEntry { node, identity }) if is_believed && node != NODE_SELF => (Place::Stack, identity),
        Some(_) => (Place::Stack, identity::UNMANAGED),
        None => (Place::Stack, identity::WORLD),
    };
    let from = Side::stack(place, identity, packet.moment.src_shard, config.host_mac);
    let to = Side::endpoint(endpoint, packet.moment.dst_shard);
    Ok(flows::decide(packet, &from, &to))
}
