//! The tunnel between nodes, by the device `warren_vxlan`: it writes and takes off the VXLAN header; the programs give and
//! read the tunnel key. (Where XDP writes the headers: `xdp::tunnel`.)

use aya_ebpf::{
    bindings::{BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
};
use datapath_abi::{
    DropReason, FlowEntry, NodeConfig, TUNNEL_DST_MAC, TUNNEL_SRC_MAC, V4, identity_number as identity,
};
use datapath_packet::tunnel_identity;

use crate::{context::Packet, lookup, verdict::Verdict};

/// Size of `bpf_tunnel_key` up to and without the local address, which kernels before 6.1 do not know.
const TUNNEL_KEY_BYTES: u32 = 28;
/// TTL of the outer header; nodes may be several routers apart.
const TUNNEL_TTL: u8 = 64;

/// Sends a packet to the node that is the entry's target, with the entry's source identity.
///
/// # Errors
/// [`DropReason::NoTunnelEndpoint`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn encapsulate(packet: &Packet, config: &NodeConfig, entry: &FlowEntry) -> Result<Verdict, DropReason> {
    let remote = lookup::underlay_of(entry.target).ok_or(DropReason::NoTunnelEndpoint)?;
    if config.vxlan_ifindex == 0 {
        return Err(DropReason::NoTunnelEndpoint);
    }
    packet.write_macs(entry.dst_mac, entry.src_mac)?;
    set_key(packet, remote, tunnel_identity(entry.src_identity))?;
    Ok(Verdict::Redirect(config.vxlan_ifindex))
}

/// Sends a packet of this node back to the node that the tunnel brought its cause from.
///
/// # Errors
/// [`DropReason::HelperFailed`].
#[inline(always)]
pub fn send_back(packet: &Packet, config: &NodeConfig) -> Result<Verdict, DropReason> {
    packet.write_macs(TUNNEL_DST_MAC, TUNNEL_SRC_MAC)?;
    set_key(packet, packet.outer_src, identity::REMOTE_NODE)?;
    Ok(Verdict::Redirect(config.vxlan_ifindex))
}

#[inline(always)]
fn set_key(packet: &Packet, remote: V4, identity: u32) -> Result<(), DropReason> {
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

/// Notes what the outer headers said of a packet: the sending node's address, and the identity of the sender.
///
/// # Errors
/// [`DropReason::HelperFailed`]: the packet did not come by the tunnel.
#[inline(always)]
pub fn decapsulate(packet: &mut Packet) -> Result<(), DropReason> {
    // SAFETY: integers and byte arrays only.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: the key is larger than the size given.
    if unsafe { bpf_skb_get_tunnel_key(packet.skb(), &mut key, TUNNEL_KEY_BYTES, 0) } != 0 {
        return Err(DropReason::HelperFailed);
    }
    // SAFETY: written by the helper; without `BPF_F_TUNINFO_IPV6` it answers for IPv4 only.
    packet.outer_src = unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes();
    packet.vni = key.tunnel_id;
    Ok(())
}
