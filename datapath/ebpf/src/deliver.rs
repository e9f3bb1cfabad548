//! Carrying out what a flow entry says. "Send this to node n" is in one place: [`into_tunnel`].

use aya_ebpf::{
    bindings::{BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    helpers::bpf_skb_set_tunnel_key,
};
use datapath_abi::{DropReason, FlowAction, FlowEntry, NodeConfig, V4};
use datapath_packet::{ETHERNET_BYTES, Ipv4, tunnel_identity};

use crate::{lookup, packet::Packet, programs::Verdict};

/// Size of `bpf_tunnel_key` up to and without the local address, which kernels before 6.1 do not know.
pub const TUNNEL_KEY_BYTES: u32 = 28;
/// Of the outer header; nodes may be several routers apart.
const TUNNEL_TTL: u8 = 64;

/// Sends on a packet that came in from an endpoint or from the tunnel.
///
/// # Errors
/// [`DropReason::TtlExceeded`], [`DropReason::NoTunnelEndpoint`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn by_entry(
    packet: &Packet,
    config: &NodeConfig,
    ip: &Ipv4,
    entry: &FlowEntry,
) -> Result<Verdict, DropReason> {
    match FlowAction::from_number(entry.action) {
        Some(FlowAction::Local) => {
            // One hop for the whole way between two endpoints, taken where it is delivered.
            packet.write(ETHERNET_BYTES, ip.next_hop()?)?;
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
        Some(FlowAction::Stack) => Ok(Verdict::Pass),
        Some(FlowAction::Underlay) => {
            packet.write(ETHERNET_BYTES, ip.next_hop()?)?;
            Ok(Verdict::Neighbour(entry.target))
        }
        None => Err(DropReason::HelperFailed),
    }
}

/// Sends a packet to the node that is the entry's target, as the identity that is its source.
///
/// # Errors
/// [`DropReason::NoTunnelEndpoint`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn into_tunnel(packet: &Packet, config: &NodeConfig, entry: &FlowEntry) -> Result<Verdict, DropReason> {
    let remote = lookup::underlay_of(entry.target).ok_or(DropReason::NoTunnelEndpoint)?;
    packet.write_macs(entry.dst_mac, entry.src_mac)?;

    // SAFETY: integers and byte arrays only.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = tunnel_identity(entry.src_identity);
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(remote);
    key.tunnel_ttl = TUNNEL_TTL;
    let flags = u64::from(BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT);
    // SAFETY: the key is larger than the size given.
    match unsafe { bpf_skb_set_tunnel_key(packet.skb(), &mut key, TUNNEL_KEY_BYTES, flags) } {
        0 => Ok(Verdict::Out(config.vxlan_ifindex)),
        _ => Err(DropReason::HelperFailed),
    }
}

/// Whether an address is a node's own, this one's or another's.
#[inline(always)]
pub fn is_node(address: V4, identity: u32) -> bool {
    use datapath_abi::identity_number::{HOST, REMOTE_NODE};
    identity == HOST || identity == REMOTE_NODE || lookup::node_at(address).is_some()
}
