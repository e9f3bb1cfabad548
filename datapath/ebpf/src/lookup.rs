//! What the maps say of nodes, endpoints, addresses and ports.

use aya_ebpf::btf_maps::lpm_trie::Key;
use datapath_abi::{ABI_VERSION, DropReason, EndpointEntry, NodeConfig, V4, service_port_bit};
use datapath_packet::Owner;

use crate::maps;

/// The node's configuration.
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
///
/// # Errors
/// [`DropReason::UnknownEndpoint`].
#[inline(always)]
pub fn endpoint_at(ifindex: u32) -> Result<&'static EndpointEntry, DropReason> {
    // SAFETY: entries are not reused before this run ends (RCU); a value that changes meanwhile is made up for by the epoch.
    unsafe { maps::ENDPOINTS_BY_IFINDEX.get(ifindex) }.ok_or(DropReason::UnknownEndpoint)
}

/// The local endpoint with an address.
#[inline(always)]
pub fn endpoint_with(address: V4) -> Option<&'static EndpointEntry> {
    // SAFETY: as in `endpoint_at`.
    unsafe { maps::ENDPOINTS_V4.get(address) }
}

/// The owner of an address: by the exact entry of the ipcache, else by the longest prefix.
#[inline(always)]
pub fn owner(address: V4) -> Owner {
    // SAFETY: as in `endpoint_at`; the value is copied.
    match unsafe { maps::IPCACHE_V4.get(address) } {
        Some(entry) => Owner::of(Some(*entry)),
        None => Owner::of(maps::IPCACHE_LPM_V4.get(&Key::new(32, address)).copied()),
    }
}

/// Whether a frontend is, or was, at a port of some address.
#[inline(always)]
pub fn is_service_port(protocol: u8, port_be: [u8; 2]) -> bool {
    let (word, bit) = service_port_bit(protocol, u16::from_be_bytes(port_be));
    maps::SERVICE_PORTS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Whether what endpoints send to a destination outside keeps its source.
#[inline(always)]
pub fn is_unmasqueraded(destination: V4) -> bool {
    maps::UNMASQUERADED_LPM_V4.get(&Key::new(32, destination)).is_some()
}

/// The underlay address of a node; `None`: there is no such node, or it has no IPv4 address.
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
