//! Carrying out what a flow entry says. "Send this to node n" is in one place: [`into_tunnel`].

use aya_ebpf::{
    bindings::{BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    helpers::bpf_skb_set_tunnel_key,
};
use datapath_abi::{DropReason, FlowAction, FlowEntry, NodeConfig, V4, node_flags};
use datapath_packet::{ETHERNET_BYTES, Halves, Ipv4, tunnel_identity};

use crate::{
    context::Packet,
    decide::flow::{self as flows, Flow},
    hook::Verdict,
    lookup,
    nat::rewrite,
    parse::icmp,
};

/// Size of `bpf_tunnel_key` up to and without the local address, which kernels before 6.1 do not know.
pub const TUNNEL_KEY_BYTES: u32 = 28;
/// Of the outer header; nodes may be several routers apart.
const TUNNEL_TTL: u8 = 64;

/// Sends on a packet by the entry of its flow, or by a decision that it then remembers.
///
/// # Errors
/// Those of `decide`, [`by_entry`] and [`flows::remember`].
#[inline(always)]
pub fn flow(
    packet: &mut Packet,
    config: &NodeConfig,
    ip: &Ipv4,
    known: Option<Flow>,
    decide: impl FnOnce(&mut Packet) -> Result<&'static mut Halves, DropReason>,
) -> Result<Verdict, DropReason> {
    match known {
        Some(flow) => {
            let verdict = by_entry(packet, config, ip, flow.entry())?;
            flow.touch(packet);
            Ok(verdict)
        }
        None => {
            let halves = decide(packet)?;
            let verdict = by_entry(packet, config, ip, &halves.forward)?;
            flows::remember(packet, halves)?;
            Ok(verdict)
        }
    }
}

/// Sends on a packet that came in from an endpoint, from the tunnel or from the underlay.
///
/// # Errors
/// [`DropReason::TtlExceeded`], [`DropReason::TooBig`] (then `packet.mtu_bytes` says what is not),
/// [`DropReason::NoTunnelEndpoint`], [`DropReason::MasqueradeProtocol`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn by_entry(
    packet: &mut Packet,
    config: &NodeConfig,
    ip: &Ipv4,
    entry: &FlowEntry,
) -> Result<Verdict, DropReason> {
    carry_out(packet, config, ip, entry);
    verdict_of(packet.verdict)
}

/// [`by_entry`], for known flows and for decisions alike: a function of its own, with a stack of its own. What comes of
/// it goes by the scratch memory, so that the verifier does not follow each outcome by itself through what comes after.
#[inline(never)]
fn carry_out(packet: &mut Packet, config: &NodeConfig, ip: &Ipv4, entry: &FlowEntry) {
    let verdict = match prepare(packet, config, ip, entry) {
        0 => send(packet, config, entry),
        reason => Err(DropReason::from_number(reason as u8).unwrap_or(DropReason::HelperFailed)),
    };
    packet.verdict = match verdict {
        Ok(Verdict::Leave) => word(LEAVE, 0),
        Ok(Verdict::Pass) => word(PASS, 0),
        Ok(Verdict::Into(ifindex)) => word(INTO, ifindex),
        Ok(Verdict::Out(ifindex)) => word(OUT, ifindex),
        Ok(Verdict::Neighbour(ifindex)) => word(NEIGHBOUR, ifindex),
        Err(reason) => word(DROP, reason as u32),
    };
}

const LEAVE: u32 = 0;
const PASS: u32 = 1;
const INTO: u32 = 2;
const OUT: u32 = 3;
const NEIGHBOUR: u32 = 4;
const DROP: u32 = 5;

#[inline(always)]
fn word(kind: u32, detail: u32) -> u64 {
    u64::from(kind) << 32 | u64::from(detail)
}

#[inline(always)]
fn verdict_of(word: u64) -> Result<Verdict, DropReason> {
    let detail = word as u32;
    match (word >> 32) as u32 {
        LEAVE => Ok(Verdict::Leave),
        PASS => Ok(Verdict::Pass),
        INTO => Ok(Verdict::Into(detail)),
        OUT => Ok(Verdict::Out(detail)),
        NEIGHBOUR => Ok(Verdict::Neighbour(detail)),
        _ => Err(DropReason::from_number(detail as u8).unwrap_or(DropReason::HelperFailed)),
    }
}

/// Whether the entry's packets go to the stack as they are.
#[inline(always)]
fn goes_by_stack(config: &NodeConfig, entry: &FlowEntry) -> bool {
    entry.action == FlowAction::Stack as u8
        || entry.action == FlowAction::Local as u8 && config.flags & node_flags::LEGACY_HOST_ROUTING != 0
}

/// Everything that is written from the IP header on. Returns the number of the reason against it, or 0.
#[inline(never)]
fn prepare(packet: &mut Packet, config: &NodeConfig, ip: &Ipv4, entry: &FlowEntry) -> u32 {
    match fit(packet, config, ip, entry) {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn fit(packet: &mut Packet, config: &NodeConfig, ip: &Ipv4, entry: &FlowEntry) -> Result<(), DropReason> {
    let (tunnel, underlay) = (FlowAction::Tunnel as u8, FlowAction::Underlay as u8);
    if entry.action == tunnel || entry.action == underlay {
        let mtu_bytes = if entry.action == tunnel { config.pod_mtu_bytes } else { config.underlay_mtu_bytes };
        if mtu_bytes != 0 && packet.wire_bytes(ip) > mtu_bytes {
            packet.mtu_bytes = mtu_bytes;
            return Err(DropReason::TooBig);
        }
    }
    // One hop for the whole way between two endpoints, taken where it is delivered. The stack takes its own.
    let is_delivered = entry.action == FlowAction::Local as u8 && !goes_by_stack(config, entry);
    let takes_hop = is_delivered || entry.action == underlay;
    if !rewrite::is_rewritten(entry) {
        if entry.backend != 0 {
            // The rest of a datagram goes to that backend, too.
            rewrite::note_fragment(packet, ip);
        }
        return if takes_hop { packet.write(ETHERNET_BYTES, ip.next_hop()?) } else { Ok(()) };
    }
    rewrite::note_fragment(packet, ip);
    if takes_hop {
        let header = ip.next_hop()?;
        rewrite(packet, &header, entry)
    } else if entry.action == FlowAction::Stack as u8 {
        // What the stack routes gets its new source where it leaves: `to_netdev`.
        Ok(())
    } else {
        rewrite(packet, ip, entry)
    }
}

#[inline(always)]
fn send(packet: &Packet, config: &NodeConfig, entry: &FlowEntry) -> Result<Verdict, DropReason> {
    if goes_by_stack(config, entry) {
        packet.accept()?;
        return Ok(Verdict::Pass);
    }
    match FlowAction::from_number(entry.action) {
        Some(FlowAction::Local) => {
            packet.write_macs(entry.dst_mac, entry.src_mac)?;
            packet.accept()?;
            Ok(Verdict::Into(entry.target))
        }
        Some(FlowAction::Tunnel) => into_tunnel(packet, config, entry),
        Some(FlowAction::Host) => {
            // Out of `warren_net` and so into `warren_host`, where the routes to the endpoints are: strict
            // reverse-path filters are content.
            packet.write_macs(entry.dst_mac, entry.src_mac)?;
            Ok(Verdict::Out(config.net_ifindex))
        }
        Some(FlowAction::Underlay) => Ok(Verdict::Neighbour(entry.target)),
        Some(FlowAction::Stack) | None => Err(DropReason::HelperFailed),
    }
}

/// Writes what the entry says into the packet, whose IP header will be `ip` but for its addresses.
///
/// # Errors
/// [`DropReason::MasqueradeProtocol`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn rewrite(packet: &Packet, ip: &Ipv4, entry: &FlowEntry) -> Result<(), DropReason> {
    if packet.is_error { icmp::translate(packet, ip, entry) } else { rewrite::write(packet, ip, entry) }
}

/// Sends a packet to the node that is the entry's target, as the identity that is its source.
///
/// # Errors
/// [`DropReason::NoTunnelEndpoint`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn into_tunnel(packet: &Packet, config: &NodeConfig, entry: &FlowEntry) -> Result<Verdict, DropReason> {
    let remote = lookup::underlay_of(entry.target).ok_or(DropReason::NoTunnelEndpoint)?;
    if config.vxlan_ifindex == 0 {
        return Err(DropReason::NoTunnelEndpoint);
    }
    packet.write_macs(entry.dst_mac, entry.src_mac)?;
    tunnel_key(packet, remote, tunnel_identity(entry.src_identity))?;
    Ok(Verdict::Out(config.vxlan_ifindex))
}

/// Addresses a packet that leaves by `warren_vxlan`.
///
/// # Errors
/// [`DropReason::HelperFailed`].
#[inline(always)]
pub fn tunnel_key(packet: &Packet, remote: V4, identity: u32) -> Result<(), DropReason> {
    // SAFETY: integers and byte arrays only.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = identity;
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(remote);
    key.tunnel_ttl = TUNNEL_TTL;
    let flags = u64::from(BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT);
    // SAFETY: the key is larger than the size given.
    match unsafe { bpf_skb_set_tunnel_key(packet.skb(), &mut key, TUNNEL_KEY_BYTES, flags) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

/// Whether an address is a node's own, this one's or another's.
#[inline(always)]
pub fn is_node(address: V4, identity: u32) -> bool {
    use datapath_abi::identity_number::{HOST, REMOTE_NODE};
    identity == HOST || identity == REMOTE_NODE || lookup::node_at(address).is_some()
}
