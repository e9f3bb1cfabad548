//! What the node's stack delivers to a workload: host side of its device, egress.

use datapath_abi::{DropReason, FlowAction, FlowEntry, NodeConfig, SourceKind, node_flags};
use datapath_packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, comes_from};

use crate::{
    context::{Origin, Packet},
    decide::{decide, flow, pair},
    epoch, lookup,
    maps::FLOWS_V4,
    parse,
    verdict::Verdict,
};

/// Out of the device, unchanged.
#[inline(always)]
pub fn handle(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    match parse::ethernet(packet)?.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config),
        // The programs' own replies for the gateway pass here.
        ETHERTYPE_ARP => Ok(Verdict::Pass),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    parse::ipv4(packet)?;
    // By its routes the stack may choose an interface; only the endpoint's own is right.
    let ifindex = packet.ifindex();
    let is_by_stack = config.flags & node_flags::LEGACY_HOST_ROUTING != 0;
    let ingress = packet.ingress_ifindex();
    let is_for_device = |entry: &FlowEntry| {
        (comes_from(entry, SourceKind::Host, 0) || is_by_stack && came_by(config, entry, ingress))
            && entry.action == FlowAction::Local as u8
            && entry.target == ifindex
    };
    if let Some(flow) = flow::lookup(packet, is_for_device) {
        // What another program has let in was counted there.
        if comes_from(flow.entry(), SourceKind::Host, 0) {
            flow.touch(packet);
        }
        return Ok(Verdict::Pass);
    }
    if is_translated_already(packet) {
        return Ok(Verdict::Pass);
    }
    decide(packet, config, Origin::Stack)?;
    packet.step(pair::write)?;
    Ok(Verdict::Pass)
}

/// Whether a packet that came to the stack by the interface `ingress` is what the entry is for: the program there has checked
/// the packet, and has left the delivery to the stack.
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

/// Whether the packet belongs to a flow of the endpoint that was translated before: a reply that `from_netdev` or
/// `from_tunnel` has left to the stack, or a service's packet that `from_host` hands over. It has no entry of its own, and
/// must not get one in the place of its flow's.
#[inline(never)]
fn is_translated_already(packet: &Packet) -> bool {
    // SAFETY: as in `Flow::entry`; read at once.
    unsafe { FLOWS_V4.get(packet.key.reverse()) }.is_some_and(|entry| {
        entry.is_translated()
            && comes_from(entry, SourceKind::Endpoint, packet.ifindex())
            && epoch::is_valid(entry)
    })
}
