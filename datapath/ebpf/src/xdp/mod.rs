//! XDP on the underlay interface: packets of known flows between external clients and backends elsewhere are forwarded, and
//! whole networks are refused, before the kernel makes packets of frames.
//!
//! Nothing is decided here. A packet is forwarded that goes from the underlay back to the underlay by an entry of the flow
//! table; everything else goes up unchanged to `from_netdev` and `from_tunnel`, which decide. So a sender sees no difference
//! between a node with this program and one without.

mod frame;
mod headers;
mod next_hop;
mod tunnel;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    btf_maps::lpm_trie::Key,
    macros::xdp,
    programs::XdpContext,
};
use datapath_abi::{
    BACKEND_ELSEWHERE, COUNTED_BY_XDP, Direction, DropReason, FlowAction, FlowEntry, NodeConfig, SourceKind,
    V4, flow_flags::REWRITE_DST,
};
use datapath_packet::{
    ETHERNET_BYTES, ETHERTYPE_IPV4, Ethernet, Ipv4, TUNNEL_BYTES, TunnelHeader, comes_from, dsr_backend,
    is_ecn_the_same, is_tunnel_packet,
};

use crate::{
    decide::flow::{self, Flow},
    lookup,
    maps::DROPPED_LPM_V4,
    nat::masquerade,
    report,
};
use frame::Frame;
use headers::Headers;

/// The verdict about a frame.
pub enum Verdict {
    /// The frame goes up unchanged.
    Pass,
    /// The frame goes out where it came in, as it is now; so many bytes are counted, from the inner Ethernet header on.
    Tx(u32),
    /// The frame is dropped.
    Drop(DropReason),
}

#[xdp]
pub fn xdp_entry(context: XdpContext) -> u32 {
    let frame = Frame::new(&context);
    let bytes = frame.bytes();
    match decide(&frame) {
        Verdict::Pass => XDP_PASS,
        Verdict::Tx(bytes) => {
            report::add(report::FORWARDED, Direction::Ingress, bytes);
            report::add(COUNTED_BY_XDP, Direction::Ingress, bytes);
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
    let Ok(config) = lookup::config() else { return Verdict::Pass };
    if frame.ingress_ifindex() != config.underlay_ifindex {
        return Verdict::Pass;
    }
    let Some(ethernet) = frame.read::<Ethernet>(0) else { return Verdict::Pass };
    if ethernet.ethertype_be != ETHERTYPE_IPV4 {
        return Verdict::Pass;
    }
    let Some(ip) = frame.read::<Ipv4>(ETHERNET_BYTES) else { return Verdict::Pass };
    if is_dropped(ip.src) {
        return Verdict::Drop(DropReason::DroppedNetwork);
    }
    match frame.read::<TunnelHeader>(ETHERNET_BYTES + size_of::<Ipv4>()) {
        Some(header) if is_tunnel_packet(&ip, &header, config.underlay_v4, config.tunnel_port) => {
            from_tunnel(frame, config, &ethernet, &ip, &header)
        }
        _ => from_underlay(frame, config, &ethernet),
    }
}

#[inline(always)]
fn is_dropped(source: V4) -> bool {
    DROPPED_LPM_V4.get(&Key::new(32, source)).is_some()
}

/// From a client to a frontend, or from a backend outside the fleet to a port of the masquerade. A packet with neither port is
/// the node's own, and is asked nothing more.
#[inline(always)]
fn from_underlay(frame: &Frame, config: &NodeConfig, ethernet: &Ethernet) -> Verdict {
    let mut headers = Headers::NONE;
    if !headers.parse::<0>(frame) {
        return Verdict::Pass;
    }
    let key = &headers.key;
    let is_answer = key.dst == config.underlay_v4 && masquerade::is_port(config, key.dst_port_be);
    if !is_answer && !lookup::is_service_port(key.protocol, key.dst_port_be) {
        return Verdict::Pass;
    }
    let Some(flow) = Flow::find(key) else { return Verdict::Pass };
    let entry = flow.entry();
    // As `from_netdev` asks.
    let is_ours =
        (entry.flags & REWRITE_DST != 0 || entry.backend != 0) && comes_from(entry, SourceKind::Underlay, 0);
    if !is_ours || !flow::holds(key, entry) {
        return Verdict::Pass;
    }
    let bytes = frame.bytes();
    let sent = if entry.action == FlowAction::Tunnel as u8 {
        tunnel::encapsulate(frame, config, ethernet, &headers, entry)
    } else {
        send::<0>(frame, config, ethernet, &headers, entry)
    };
    done(sent, &flow, &headers, bytes)
}

/// By the tunnel from a backend, to the gateway's address and a port of the masquerade. A packet for an endpoint is asked
/// nothing more.
#[inline(always)]
fn from_tunnel(
    frame: &Frame,
    config: &NodeConfig,
    ethernet: &Ethernet,
    outer: &Ipv4,
    header: &TunnelHeader,
) -> Verdict {
    let mut headers = Headers::NONE;
    let Some(inside) = frame.read::<Ethernet>(TUNNEL_BYTES) else { return Verdict::Pass };
    if !headers::is_whole(outer, frame.bytes())
        || !header.is_plain(outer)
        || inside.ethertype_be != ETHERTYPE_IPV4
        || dsr_backend(&inside.macs).0
        || !headers.parse::<TUNNEL_BYTES>(frame)
        || !is_ecn_the_same(outer, &headers.ip)
    {
        return Verdict::Pass;
    }
    let key = &headers.key;
    if key.dst != config.gateway_v4 || !masquerade::is_port(config, key.dst_port_be) {
        return Verdict::Pass;
    }
    let Some(flow) = Flow::find(key) else { return Verdict::Pass };
    let entry = flow.entry();
    if !is_from(entry, outer.src, header.vni()) || !flow::holds(key, entry) {
        return Verdict::Pass;
    }
    let bytes = frame.bytes().saturating_sub(TUNNEL_BYTES as u32);
    done(send::<TUNNEL_BYTES>(frame, config, ethernet, &headers, entry), &flow, &headers, bytes)
}

/// Whether the entry is for packets of the node that has this address now, as this identity: as `from_tunnel` asks, but for
/// direct server return.
#[inline(always)]
fn is_from(entry: &FlowEntry, outer_src: V4, vni: u32) -> bool {
    entry.source_kind == SourceKind::Node as u8
        && entry.backend != BACKEND_ELSEWHERE
        && entry.src_identity == vni
        && lookup::underlay_of(entry.source) == Some(outer_src)
}

/// Sends a packet, which begins behind `BASE` bytes, out by the underlay.
#[inline(always)]
fn send<const BASE: usize>(
    frame: &Frame,
    config: &NodeConfig,
    ethernet: &Ethernet,
    headers: &Headers,
    entry: &FlowEntry,
) -> Sent {
    let total_bytes = headers.ip.total_bytes_be;
    let mtu_bytes = config.underlay_mtu_bytes;
    if entry.action != FlowAction::Underlay as u8
        || entry.target != config.underlay_ifindex
        || mtu_bytes != 0 && u32::from(u16::from_be_bytes(total_bytes)) > mtu_bytes
    {
        return Sent::Unchanged;
    }
    let Ok(ip) = headers.ip.decrement_ttl() else { return Sent::Unchanged };
    let translated = headers.translated(ip, entry);
    let mut hop = next_hop::RouteQuery::of(&translated);
    let Some(macs) = hop.ask(frame, config, ethernet.macs.dst) else { return Sent::Unchanged };
    if BASE != 0 && !frame.strip(BASE) {
        return Sent::Unchanged;
    }
    let written =
        translated.write::<0>(frame) && frame.write(0, Ethernet { macs, ethertype_be: ETHERTYPE_IPV4 });
    if written { Sent::Whole } else { Sent::Damaged }
}

/// What came of sending a frame.
enum Sent {
    /// The frame is ready to go.
    Whole,
    /// The frame is as it came.
    Unchanged,
    /// A part of the frame was written. Never, but the verifier cannot know.
    Damaged,
}

#[inline(always)]
fn done(sent: Sent, flow: &Flow, headers: &Headers, bytes: u32) -> Verdict {
    match sent {
        Sent::Whole => {
            flow.count(bytes, headers.tcp_flags);
            Verdict::Tx(bytes)
        }
        Sent::Unchanged => Verdict::Pass,
        Sent::Damaged => Verdict::Drop(DropReason::HelperFailed),
    }
}
