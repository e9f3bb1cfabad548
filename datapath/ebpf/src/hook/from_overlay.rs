//! What other nodes send: `warren_vxlan`, ingress. "This came from node n as identity i" is in one place:
//! [`read_origin`].

use aya_ebpf::{bindings::bpf_tunnel_key, helpers::bpf_skb_get_tunnel_key};
use datapath_abi::{
    BACKEND_ELSEWHERE, DropReason, FlowEntry, IpcacheEntry, NODE_NONE, NODE_SELF, NodeConfig, SourceKind,
    TUNNEL_DST_MAC, TUNNEL_SRC_MAC, V4, identity_number as identity,
};
use datapath_packet::{ETHERTYPE_IPV4, Place, Side, check_sender, comes_from};

use crate::{
    context::Packet,
    decide::flow as flows,
    forward::execute::{self as deliver, TUNNEL_KEY_BYTES},
    hook::Verdict,
    lookup,
    nat::masquerade,
    nat::rewrite,
    parse::icmp,
    service,
    service::dsr as direct,
    service::nodeport as outside,
};

/// To an endpoint or to this node, if a member sent it from an address of its own; out by the underlay, if it answers a
/// client outside.
#[inline(always)]
pub fn decide(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    read_origin(packet);
    if packet.is_refused() {
        return Err(DropReason::HelperFailed);
    }
    packet.src_identity = packet.vni;
    let ethernet = packet.ethernet()?;
    direct::note(packet, &ethernet.macs);
    match ethernet.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

/// Notes where a tunnel packet says that it comes from.
#[inline(never)]
fn read_origin(packet: &mut Packet) {
    // SAFETY: integers and byte arrays only.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: the key is larger than the size given.
    if unsafe { bpf_skb_get_tunnel_key(packet.skb(), &mut key, TUNNEL_KEY_BYTES, 0) } != 0 {
        return packet.refuse(DropReason::HelperFailed);
    }
    // SAFETY: written by the helper; without `BPF_F_TUNINFO_IPV6` it answers for IPv4 only.
    packet.outer_src = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
    packet.vni = key.tunnel_id;
}

/// Whether the entry was made for packets from there: the node's address is looked up for every packet, so that one that
/// left or moved is noticed.
///
/// An error about the flow may come from elsewhere behind that node, which is then what is checked.
#[inline(always)]
fn is_source_of(origin: (V4, u32), entry: &FlowEntry, src: V4, is_error: bool) -> bool {
    let (underlay, vni) = origin;
    entry.source_kind == SourceKind::Node as u8
        && lookup::underlay_of(entry.source) == Some(underlay)
        && if is_error {
            may_tell(entry, src, vni)
        } else if entry.backend == BACKEND_ELSEWHERE {
            vni == identity::WORLD
        } else {
            entry.src_identity == vni
        }
}

/// Whether the entry's node may send an error from `src`: of a client outside any router outside, too. (Inline it would take
/// room from the deepest chain of calls.)
#[inline(never)]
fn may_tell(entry: &FlowEntry, src: V4, vni: u32) -> bool {
    let source = lookup::ipcache(src);
    if entry.backend == BACKEND_ELSEWHERE {
        return vni == identity::WORLD && source.is_none_or(|source| source.node == NODE_NONE);
    }
    check_sender(entry.source, source, vni).is_ok()
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    let ip = packet.parse_ipv4()?;
    rewrite::find_ports(packet, ip);
    let (origin, src, is_error) = ((packet.outer_src, packet.vni), packet.key.src, packet.is_error);
    let direct = (packet.is_direct, packet.direct_address, packet.direct_port_be);
    let known = flows::known(packet, |entry| {
        direct::is_same(entry, direct) && is_source_of(origin, entry, src, is_error)
    });
    deliver::flow(packet, config, ip, known, |packet| {
        decide_anew(packet, config);
        packet.decided()
    })
}

#[inline(never)]
fn decide_anew(packet: &mut Packet, config: &NodeConfig) {
    flows::begin(packet);
    if packet.is_direct {
        return direct::decide_anew(packet, config);
    }
    let node = sender(packet);
    if packet.is_refused() {
        return;
    }
    if packet.stale.is_reply && packet.stale.is_from_outside {
        outside::as_if_asked(packet, config);
        let vni = packet.vni;
        let Ok(halves) = packet.decided() else { return };
        // The sender knows its endpoint's identity first. Its backend may have gone to another node.
        (halves.forward.src_identity, halves.reverse.dst_identity) = (vni, vni);
        if !comes_from(&halves.forward, SourceKind::Node, node) {
            packet.refuse(DropReason::InnerSource);
        }
        return;
    }
    decide_directly(packet, config, node);
    if !packet.is_refused() {
        service::settle(packet);
    }
}

/// The member that sent the packet, if it may send that.
#[inline(never)]
fn sender(packet: &mut Packet) -> u32 {
    let node = lookup::node_at(packet.outer_src).unwrap_or(NODE_NONE);
    if node == NODE_NONE || node == NODE_SELF {
        packet.refuse(DropReason::UnknownNode);
    } else if let Err(reason) = check_sender(node, lookup::ipcache(packet.key.src), packet.vni) {
        packet.refuse(reason);
    }
    node
}

#[inline(never)]
fn decide_directly(packet: &mut Packet, config: &NodeConfig, node: u32) {
    if let Err(reason) = directly(packet, config, node) {
        packet.refuse(reason);
    }
}

#[inline(always)]
fn directly(packet: &mut Packet, config: &NodeConfig, node: u32) -> Result<(), DropReason> {
    let to = destination(packet, config, packet.moment.dst_shard)?;
    let from = Side::node(node, packet.vni, packet.moment.src_shard);
    flows::decide(packet, &from, &to);
    Ok(())
}

/// One of this node's endpoints or the node itself: nothing goes from tunnel to tunnel.
#[inline(always)]
fn destination(packet: &Packet, config: &NodeConfig, shard: u16) -> Result<Side, DropReason> {
    if let Some(endpoint) = lookup::endpoint_of(packet.key.dst) {
        return Ok(Side::endpoint(endpoint, shard));
    }
    match lookup::ipcache(packet.key.dst) {
        // An answer to a client outside, half of whose flow is gone: the stack would refuse it, and the backend would end it.
        Some(IpcacheEntry { node: NODE_SELF, identity: identity::HOST })
            if packet.key.dst == config.gateway_v4 && masquerade::is_answer_to_nobody(packet, config) =>
        {
            Err(DropReason::NoTranslation)
        }
        Some(IpcacheEntry { node: NODE_SELF, identity: identity::HOST }) => {
            Ok(Side::stack(Place::Host, identity::HOST, shard, config.host_mac))
        }
        _ => Err(DropReason::UnknownDestination),
    }
}

/// Tells one behind the sending node why its packet goes no further.
#[inline(always)]
pub fn refuse(packet: &Packet, reason: DropReason) -> Option<Verdict> {
    let config = lookup::config().ok()?;
    if !icmp::refuse(packet, config.gateway_v4, reason) {
        return None;
    }
    packet.write_macs(TUNNEL_DST_MAC, TUNNEL_SRC_MAC).ok()?;
    deliver::tunnel_key(packet, packet.outer_src, identity::REMOTE_NODE).ok()?;
    Some(Verdict::Out(config.vxlan_ifindex))
}
