//! What the maps say.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    btf_maps::lpm_trie::Key,
    helpers::bpf_fib_lookup,
};
use datapath_abi::{
    ABI_VERSION, DropReason, EndpointEntry, IpcacheEntry, NODE_NONE, NodeConfig, V4, identity_number,
    service_port_bit,
};

use crate::{context::Packet, maps};

/// As in `linux/socket.h`.
pub const AF_INET: u8 = 2;

/// What the programs must know of their node.
///
/// # Errors
/// [`DropReason::NotConfigured`]: user space has written nothing yet, or in other layouts than these.
#[inline(always)]
pub fn config() -> Result<&'static NodeConfig, DropReason> {
    match maps::CONFIG.get(0) {
        Some(config) if config.abi_version == ABI_VERSION => Ok(config),
        _ => Err(DropReason::NotConfigured),
    }
}

/// The endpoint behind an interface.
#[inline(always)]
pub fn endpoint_at(ifindex: u32) -> Result<&'static EndpointEntry, DropReason> {
    // SAFETY: entries are not reused before this run ends (RCU); a value that changes meanwhile is made up
    // for by the epoch.
    unsafe { maps::ENDPOINTS_BY_IFINDEX.get(ifindex) }.ok_or(DropReason::UnknownEndpoint)
}

/// The local endpoint with an address.
#[inline(always)]
pub fn endpoint_of(address: V4) -> Option<&'static EndpointEntry> {
    // SAFETY: as in `endpoint_at`.
    unsafe { maps::ENDPOINTS_V4.get(address) }
}

/// Whose an address is: the exact entry, else the longest prefix.
#[inline(always)]
pub fn ipcache(address: V4) -> Option<IpcacheEntry> {
    // SAFETY: as in `endpoint_at`; the value is copied.
    match unsafe { maps::IPCACHE_V4.get(address) } {
        Some(entry) => Some(*entry),
        None => maps::IPCACHE_LPM_V4.get(&Key::new(32, address)).copied(),
    }
}

/// As [`ipcache`]; an address that is nobody's is behind no node. (Of an `Option` of several words the compiler may spill
/// what was never written, which the verifier refuses.)
#[inline(always)]
pub fn owner(address: V4) -> IpcacheEntry {
    ipcache(address).unwrap_or(IpcacheEntry { identity: identity_number::UNKNOWN, node: NODE_NONE })
}

/// Whether a frontend is, or was, at a port of some address.
#[inline(always)]
pub fn is_service_port(protocol: u8, port_be: [u8; 2]) -> bool {
    let (word, bit) = service_port_bit(protocol, u16::from_be_bytes(port_be));
    maps::SERVICE_PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Whether what endpoints send there keeps its source.
#[inline(always)]
pub fn is_unmasqueraded(destination: V4) -> bool {
    maps::UNMASQUERADED_LPM_V4.get(&Key::new(32, destination)).is_some()
}

/// Whether this node's routing sends what the endpoint sends to `dst` out by the underlay interface.
#[inline(never)]
pub fn leaves_by_underlay(packet: &Packet, config: &NodeConfig, endpoint: &EndpointEntry, dst: V4) -> bool {
    // SAFETY: integers and byte arrays only.
    let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    question.family = AF_INET;
    question.ifindex = endpoint.ifindex;
    question.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(endpoint.address_v4);
    question.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    // SAFETY: context and structure are of the sizes that the kernel is told.
    let answer = unsafe {
        bpf_fib_lookup(packet.skb().cast(), &raw mut question, size_of::<bpf_fib_lookup>() as i32, 0)
    };
    // A neighbour that is not known yet will be asked for by the kernel as the packet leaves.
    matches!(answer as u32, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)
        && question.ifindex == config.underlay_ifindex
}

/// Whether an address is one of this node's own, by its routing.
#[inline(never)]
pub fn is_own(packet: &Packet, config: &NodeConfig, address: V4) -> bool {
    // SAFETY: integers and byte arrays only.
    let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    question.family = AF_INET;
    question.ifindex = config.underlay_ifindex;
    question.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(packet.key.src);
    question.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(address);
    // SAFETY: context and structure are of the sizes that the kernel is told.
    let answer = unsafe {
        bpf_fib_lookup(packet.skb().cast(), &raw mut question, size_of::<bpf_fib_lookup>() as i32, 0)
    };
    // What is broadcast comes in frames that are not for this node alone.
    answer as u32 == BPF_FIB_LKUP_RET_NOT_FWDED
}

/// The underlay address of a node, `None` where there is no such node or it has no IPv4 one.
#[inline(always)]
pub fn underlay_of(node: u32) -> Option<V4> {
    let entry = maps::NODES.get(node)?;
    let [.., a, b, c, d] = entry.underlay;
    if entry.family == 4 { Some([a, b, c, d]) } else { None }
}

/// The index of the node with an underlay address.
#[inline(always)]
pub fn node_at(underlay: V4) -> Option<u32> {
    // SAFETY: as in `endpoint_at`; the value is copied.
    unsafe { maps::NODE_BY_ADDRESS_V4.get(underlay) }.copied()
}

/// The epoch of a shard.
#[inline(always)]
pub fn epoch(shard: u16) -> u32 {
    maps::EPOCHS.get(u32::from(shard)).copied().unwrap_or(0)
}
