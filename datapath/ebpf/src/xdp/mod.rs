//! Before the stack, on the underlay interface: known flows between clients outside and backends elsewhere, and the
//! refusal of whole networks.
//!
//! Nothing is decided here. A packet is carried out that goes as an entry of the flow table says, from the underlay back to
//! the underlay; whatever is unusual goes up unchanged to `from_netdev` and `from_overlay`, which decide. So whoever asks
//! gets the same answers with and without this program.

mod frame;
mod next_hop;
mod packet;
mod tunnel;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    btf_maps::lpm_trie::Key,
    macros::xdp,
    programs::XdpContext,
};
use datapath_abi::{
    BACKEND_ELSEWHERE, COUNTED_BEFORE_STACK, Direction, DropReason, FlowAction, FlowEntry, NodeConfig,
    SourceKind, V4, flow_flags::REWRITE_DST,
};
use datapath_packet::{
    ETHERNET_BYTES, ETHERTYPE_IPV4, Ethernet, Ipv4, TUNNEL_BYTES, TunnelHeader, comes_from, direct_place,
    is_ecn_the_same, is_tunnel_packet,
};

use crate::{
    decide::flow::{self as flows, Flow},
    lookup,
    maps::DROPPED_LPM_V4,
    nat::masquerade,
    report,
};
use frame::Frame;
use packet::Inner;

/// What becomes of a frame.
pub enum Verdict {
    /// It goes up, as it came.
    Up,
    /// It goes out where it came in, as it is now; so many bytes were carried, from the inner Ethernet header on.
    Back(u32),
    /// It goes nowhere.
    Drop(DropReason),
}

#[xdp]
pub fn xdp_entry(context: XdpContext) -> u32 {
    let frame = Frame::new(&context);
    let bytes = frame.bytes();
    match decide(&frame) {
        Verdict::Up => XDP_PASS,
        Verdict::Back(bytes) => {
            report::add(report::FORWARDED, Direction::Ingress, bytes);
            report::add(COUNTED_BEFORE_STACK, Direction::Ingress, bytes);
            XDP_TX
        }
        Verdict::Drop(reason) => {
            report::add(reason as u8, Direction::Ingress, bytes);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn decide(frame: &Frame) -> Verdict {
    let Ok(config) = lookup::config() else { return Verdict::Up };
    if frame.ingress_ifindex() != config.underlay_ifindex {
        return Verdict::Up;
    }
    let Some(ethernet) = frame.read::<Ethernet>(0) else { return Verdict::Up };
    if ethernet.ethertype_be != ETHERTYPE_IPV4 {
        return Verdict::Up;
    }
    let Some(ip) = frame.read::<Ipv4>(ETHERNET_BYTES) else { return Verdict::Up };
    if is_dropped(ip.src) {
        return Verdict::Drop(DropReason::DroppedNetwork);
    }
    match frame.read::<TunnelHeader>(ETHERNET_BYTES + size_of::<Ipv4>()) {
        Some(header) if is_tunnel_packet(&ip, &header, config.underlay_v4, config.tunnel_port) => {
            from_tunnel(frame, config, &ethernet, &ip, &header)
        }
        _ => from_outside(frame, config, &ethernet),
    }
}

#[inline(always)]
fn is_dropped(source: V4) -> bool {
    DROPPED_LPM_V4.get(&Key::new(32, source)).is_some()
}

/// What comes as it is: from a client to a frontend, or from a backend outside the fleet to a port of the masquerade. What
/// has neither port is the node's own, and asked nothing more.
#[inline(always)]
fn from_outside(frame: &Frame, config: &NodeConfig, ethernet: &Ethernet) -> Verdict {
    let mut inner = Inner::NONE;
    if !inner.parse::<0>(frame) {
        return Verdict::Up;
    }
    let key = &inner.key;
    let is_answer = key.dst == config.underlay_v4 && masquerade::is_port(config, key.dst_port_be);
    if !is_answer && !lookup::is_service_port(key.protocol, key.dst_port_be) {
        return Verdict::Up;
    }
    let Some(flow) = Flow::find(key) else { return Verdict::Up };
    let entry = flow.entry();
    // As `from_netdev` asks.
    let is_ours =
        (entry.flags & REWRITE_DST != 0 || entry.backend != 0) && comes_from(entry, SourceKind::Underlay, 0);
    if !is_ours || !flows::holds(key, entry) {
        return Verdict::Up;
    }
    let bytes = frame.bytes();
    let is_sent = if entry.action == FlowAction::Tunnel as u8 {
        tunnel::send(frame, config, ethernet, &inner, entry)
    } else {
        leave::<0>(frame, config, ethernet, &inner, entry)
    };
    done(is_sent, &flow, &inner, bytes)
}

/// What comes by the tunnel from a backend, to the gateway's address and a port of the masquerade. What endpoints get is
/// asked nothing more.
#[inline(always)]
fn from_tunnel(
    frame: &Frame,
    config: &NodeConfig,
    ethernet: &Ethernet,
    outer: &Ipv4,
    header: &TunnelHeader,
) -> Verdict {
    let mut inner = Inner::NONE;
    let Some(inside) = frame.read::<Ethernet>(TUNNEL_BYTES) else { return Verdict::Up };
    if !packet::is_whole(outer, frame.bytes())
        || !header.is_plain(outer)
        || inside.ethertype_be != ETHERTYPE_IPV4
        || direct_place(&inside.macs).0
        || !inner.parse::<TUNNEL_BYTES>(frame)
        || !is_ecn_the_same(outer, &inner.ip)
    {
        return Verdict::Up;
    }
    let key = &inner.key;
    if key.dst != config.gateway_v4 || !masquerade::is_port(config, key.dst_port_be) {
        return Verdict::Up;
    }
    let Some(flow) = Flow::find(key) else { return Verdict::Up };
    let entry = flow.entry();
    if !is_from(entry, outer.src, header.vni()) || !flows::holds(key, entry) {
        return Verdict::Up;
    }
    let bytes = frame.bytes().saturating_sub(TUNNEL_BYTES as u32);
    done(leave::<TUNNEL_BYTES>(frame, config, ethernet, &inner, entry), &flow, &inner, bytes)
}

/// Whether the entry is for what a node with this address sends now, as this identity: as `from_overlay` asks, but for what
/// another node has chosen the backend of.
#[inline(always)]
fn is_from(entry: &FlowEntry, outer_src: V4, vni: u32) -> bool {
    entry.source_kind == SourceKind::Node as u8
        && entry.backend != BACKEND_ELSEWHERE
        && entry.src_identity == vni
        && lookup::underlay_of(entry.source) == Some(outer_src)
}

/// Sends a packet, that `BASE` bytes stand before, out by the underlay.
#[inline(always)]
fn leave<const BASE: usize>(
    frame: &Frame,
    config: &NodeConfig,
    ethernet: &Ethernet,
    inner: &Inner,
    entry: &FlowEntry,
) -> Sent {
    let total_bytes = inner.ip.total_bytes_be;
    let mtu_bytes = config.underlay_mtu_bytes;
    if entry.action != FlowAction::Underlay as u8
        || entry.target != config.underlay_ifindex
        || mtu_bytes != 0 && u32::from(u16::from_be_bytes(total_bytes)) > mtu_bytes
    {
        return Sent::Not;
    }
    let Ok(ip) = inner.ip.next_hop() else { return Sent::Not };
    let rewritten = inner.rewritten(ip, entry);
    let mut hop = next_hop::Question::of(&rewritten);
    let Some(macs) = hop.ask(frame, config, ethernet.macs.dst) else { return Sent::Not };
    if BASE != 0 && !frame.strip(BASE) {
        return Sent::Not;
    }
    let written =
        rewritten.write::<0>(frame) && frame.write(0, Ethernet { macs, ethertype_be: ETHERTYPE_IPV4 });
    if written { Sent::Whole } else { Sent::Damaged }
}

/// What came of sending.
enum Sent {
    /// It is ready to go.
    Whole,
    /// Nothing: it is as it came.
    Not,
    /// Some of it was written. Never, but the verifier cannot know.
    Damaged,
}

#[inline(always)]
fn done(sent: Sent, flow: &Flow, inner: &Inner, bytes: u32) -> Verdict {
    match sent {
        Sent::Whole => {
            flow.count(bytes, inner.tcp_flags);
            Verdict::Back(bytes)
        }
        Sent::Not => Verdict::Up,
        Sent::Damaged => Verdict::Drop(DropReason::HelperFailed),
    }
}
