//! Carrying out what a flow's entry says: the one match on [`FlowAction`].

use datapath_abi::{DropReason, FlowAction, FlowEntry, NodeConfig, node_flags};
use datapath_packet::ETHERNET_BYTES;

use crate::{context::Packet, forward::tunnel, nat, parse::fragment, verdict::Verdict};

/// Sends a packet on as the entry of its direction says. `is_from_stack`: the packet comes from this node's stack by
/// `warren_host`, where it has passed routing, TTL and MTU, and a local endpoint is reached by the egress of its device.
///
/// # Errors
/// [`DropReason::TtlExceeded`], [`DropReason::TooBig`] (then `packet.mtu_bytes` says what is not),
/// [`DropReason::NoTunnelEndpoint`], [`DropReason::MasqueradeProtocol`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn execute(
    packet: &mut Packet,
    config: &NodeConfig,
    entry: &FlowEntry,
    is_from_stack: bool,
) -> Result<Verdict, DropReason> {
    if is_from_stack {
        if entry.is_translated() {
            packet.step(|packet| rewrite(packet, config, entry, true))?;
        }
        return send(packet, config, entry, true);
    }
    packet.step(|packet| {
        packet.step(|packet| rewrite(packet, config, entry, false))?;
        packet.verdict = send(packet, config, entry, false)?.to_word();
        Ok(())
    })?;
    Ok(Verdict::from_word(packet.verdict))
}

/// Everything that is written from the IP header on.
#[inline(always)]
fn rewrite(
    packet: &mut Packet,
    config: &NodeConfig,
    entry: &FlowEntry,
    is_from_stack: bool,
) -> Result<(), DropReason> {
    let is_to_tunnel = entry.action == FlowAction::Tunnel as u8;
    let is_to_underlay = entry.action == FlowAction::Underlay as u8;
    if is_to_tunnel && !is_from_stack || is_to_underlay {
        let mtu_bytes = if is_to_tunnel { config.pod_mtu_bytes } else { config.underlay_mtu_bytes };
        if mtu_bytes != 0 && packet.wire_bytes() > mtu_bytes {
            packet.mtu_bytes = mtu_bytes;
            return Err(DropReason::TooBig);
        }
    }
    if entry.is_translated() || entry.backend != 0 {
        // The later fragments of the datagram go to the same backend, and by the same port.
        fragment::remember_ports(packet);
    }
    // One hop for the whole way between two endpoints, taken where the packet is delivered. The stack takes its own.
    let is_delivered =
        entry.action == FlowAction::Local as u8 && !is_from_stack && !goes_by_stack(config, entry);
    let mut ip = *packet.ip();
    if is_delivered || is_to_underlay {
        ip = ip.decrement_ttl()?;
        if !entry.is_translated() {
            return packet.write(ETHERNET_BYTES, ip);
        }
    }
    // What the stack routes gets its new source where it leaves: `to_netdev`.
    if !entry.is_translated() || entry.action == FlowAction::Stack as u8 {
        return Ok(());
    }
    nat::translate(packet, &ip, entry)
}

#[inline(always)]
fn send(
    packet: &Packet,
    config: &NodeConfig,
    entry: &FlowEntry,
    is_from_stack: bool,
) -> Result<Verdict, DropReason> {
    match FlowAction::from_number(entry.action) {
        Some(FlowAction::Local) if is_from_stack => {
            packet.write_macs(entry.dst_mac, entry.src_mac)?;
            Ok(Verdict::Redirect(entry.target))
        }
        Some(FlowAction::Local | FlowAction::Stack) if goes_by_stack(config, entry) => {
            packet.mark_for_this_host()?;
            Ok(Verdict::Pass)
        }
        Some(FlowAction::Local) => {
            packet.write_macs(entry.dst_mac, entry.src_mac)?;
            packet.mark_for_this_host()?;
            Ok(Verdict::RedirectPeer(entry.target))
        }
        Some(FlowAction::Tunnel) => tunnel::encapsulate(packet, config, entry),
        Some(FlowAction::Host) => {
            // Out of `warren_net` and so into `warren_host`, where the routes to the endpoints are: strict reverse-path
            // filters are content.
            packet.write_macs(entry.dst_mac, entry.src_mac)?;
            Ok(Verdict::Redirect(config.net_ifindex))
        }
        Some(FlowAction::Underlay) => Ok(Verdict::RedirectNeigh(entry.target)),
        Some(FlowAction::Stack) | None => Err(DropReason::HelperFailed),
    }
}

/// Whether the entry's packets go up to the stack.
#[inline(always)]
fn goes_by_stack(config: &NodeConfig, entry: &FlowEntry) -> bool {
    entry.action == FlowAction::Stack as u8
        || entry.action == FlowAction::Local as u8 && config.flags & node_flags::LEGACY_HOST_ROUTING != 0
}
