//! What other nodes send: `warren_vxlan`, ingress. "This came from node n as identity i" is in one place:
//! [`Origin`].

use aya_ebpf::{bindings::bpf_tunnel_key, helpers::bpf_skb_get_tunnel_key};
use datapath_abi::{
    DropReason, FlowEntry, IpcacheEntry, NODE_SELF, NodeConfig, SourceKind, TUNNEL_DST_MAC, TUNNEL_SRC_MAC,
    V4, identity_number as identity,
};
use datapath_packet::{ETHERTYPE_IPV4, Halves, Place, Side, check_sender};

use crate::{
    deliver::{self, TUNNEL_KEY_BYTES},
    flows, icmp, lookup,
    packet::Packet,
    programs::Verdict,
    rewrite, service,
};

/// To an endpoint or to this node, if a member sent it from an address of its own.
#[inline(always)]
pub fn decide(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let config = lookup::config()?;
    let origin = Origin::of(packet)?;
    packet.outer_src = origin.underlay;
    packet.src_identity = origin.identity;
    match packet.ethernet()?.ethertype_be {
        ETHERTYPE_IPV4 => ipv4(packet, config, &origin),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

/// Where a tunnel packet says that it comes from.
struct Origin {
    underlay: V4,
    identity: u32,
}

impl Origin {
    #[inline(always)]
    fn of(packet: &Packet) -> Result<Self, DropReason> {
        // SAFETY: integers and byte arrays only.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        // SAFETY: the key is larger than the size given.
        if unsafe { bpf_skb_get_tunnel_key(packet.skb(), &mut key, TUNNEL_KEY_BYTES, 0) } != 0 {
            return Err(DropReason::HelperFailed);
        }
        // SAFETY: written by the helper; without `BPF_F_TUNINFO_IPV6` it answers for IPv4 only.
        let underlay = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
        Ok(Self { underlay, identity: key.tunnel_id })
    }

    /// Whether the entry was made for packets from there: the node's address is looked up for every packet, so
    /// that one that left or moved is noticed.
    ///
    /// An error about the flow may come from elsewhere behind that node, which is then what is checked.
    #[inline(always)]
    fn is_source_of(&self, entry: &FlowEntry, src: V4, is_error: bool) -> bool {
        entry.source_kind == SourceKind::Node as u8
            && lookup::underlay_of(entry.source) == Some(self.underlay)
            && if is_error {
                check_sender(entry.source, lookup::ipcache(src), self.identity).is_ok()
            } else {
                entry.src_identity == self.identity
            }
    }
}

#[inline(always)]
fn ipv4(packet: &mut Packet, config: &NodeConfig, origin: &Origin) -> Result<Verdict, DropReason> {
    let ip = packet.parse_ipv4()?;
    rewrite::find_ports(packet, ip);
    let (src, is_error) = (packet.key.src, packet.is_error);
    let known = flows::known(packet, |entry| origin.is_source_of(entry, src, is_error));
    deliver::flow(packet, config, ip, known, |packet| decide_anew(packet, config, origin))
}

#[inline(always)]
fn decide_anew(
    packet: &mut Packet,
    config: &NodeConfig,
    origin: &Origin,
) -> Result<&'static mut Halves, DropReason> {
    decide_directly(packet, config, origin);
    if !packet.is_refused() {
        service::settle(packet);
    }
    packet.decided()
}

#[inline(never)]
fn decide_directly(packet: &mut Packet, config: &NodeConfig, origin: &Origin) {
    if let Err(reason) = directly(packet, config, origin) {
        packet.refuse(reason);
    }
}

#[inline(always)]
fn directly(packet: &mut Packet, config: &NodeConfig, origin: &Origin) -> Result<(), DropReason> {
    flows::begin(packet);
    let node = match lookup::node_at(origin.underlay) {
        Some(node) if node != NODE_SELF => node,
        _ => return Err(DropReason::UnknownNode),
    };
    check_sender(node, lookup::ipcache(packet.key.src), origin.identity)?;
    let to = destination(packet, config, packet.moment.dst_shard)?;
    let from = Side::node(node, origin.identity, packet.moment.src_shard);
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
    if !icmp::refuse(packet, config, reason) {
        return None;
    }
    packet.write_macs(TUNNEL_DST_MAC, TUNNEL_SRC_MAC).ok()?;
    deliver::tunnel_key(packet, packet.outer_src, identity::REMOTE_NODE).ok()?;
    Some(Verdict::Out(config.vxlan_ifindex))
}
