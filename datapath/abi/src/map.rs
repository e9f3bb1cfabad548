//! Maps that user space writes and the programs read: configuration, endpoints, ipcache, nodes, epochs.
//!
//! What user space owes the programs:
//! - Index 0 of the nodes is [`NODE_NONE`], index 1 [`NODE_SELF`].
//! - The exact ipcache holds this node's own addresses (gateway, underlay) as {host, [`NODE_SELF`]}, other
//!   nodes' as {remote-node, their index}; the trie holds every node's CIDRs as {0, its index}.
//! - **First** write the map, **then** raise the epoch: of shard [`epoch_shard_v4`] of the address after a
//!   change of its ipcache or endpoint entry, of all shards after a change in the trie. The programs read the
//!   epochs first and the maps after them, so that a decision made from old entries is never valid.
//! - A change in the nodes map needs no epoch: it is read for every packet.
//! - All shards also after a change of [`NodeConfig`], or of the prefixes that are not masqueraded. Those hold
//!   the fleet's pools: what lies in a pool and is nobody's is not the world.

use crate::{MacBytes, V4, V6, abi_bytes};

/// Names of the maps, as in the object file and as pinned.
pub mod map_name {
    /// Array of one [`super::NodeConfig`].
    pub const CONFIG: &str = "WARREN_CONFIG";
    /// Hash: host-side interface index (u32) -> [`super::EndpointEntry`].
    pub const ENDPOINTS_BY_IFINDEX: &str = "WARREN_EP_IF";
    /// Hash: IPv4 address -> [`super::EndpointEntry`], local endpoints only.
    pub const ENDPOINTS_V4: &str = "WARREN_EP_V4";
    /// Hash: exact IPv4 address -> [`super::IpcacheEntry`].
    pub const IPCACHE_V4: &str = "WARREN_IPC_V4";
    /// LPM trie: IPv4 prefix -> [`super::IpcacheEntry`].
    pub const IPCACHE_LPM_V4: &str = "WARREN_LPM_V4";
    /// Array: node index -> [`super::NodeEntry`].
    pub const NODES: &str = "WARREN_NODES";
    /// Hash: underlay IPv4 address -> node index (u32).
    pub const NODE_BY_ADDRESS_V4: &str = "WARREN_NODE_V4";
    /// LRU hash: [`crate::FlowKey`] -> [`crate::FlowEntry`].
    pub const FLOWS_V4: &str = "WARREN_FLOWS_V4";
    /// LRU hash: [`crate::FragmentKey`] -> [`crate::FragmentPorts`], of translated flows only. The programs' own.
    pub const FRAGMENTS_V4: &str = "WARREN_FRAGS_V4";
    /// Hash: [`crate::FrontendKey`] -> [`crate::FrontendEntry`].
    pub const FRONTENDS_V4: &str = "WARREN_FRONT_V4";
    /// Array: service number -> [`crate::ServiceEntry`].
    pub const SERVICES: &str = "WARREN_SERVICES";
    /// Hash: [`crate::SlotsKey`] -> [`crate::SlotBlock`].
    pub const SLOTS: &str = "WARREN_SLOTS";
    /// Array: backend number -> [`crate::BackendEntry`].
    pub const BACKENDS_V4: &str = "WARREN_BACK_V4";
    /// LPM trie: [`crate::Source`] -> u32 (1): source ranges of services for external clients.
    pub const SOURCES_LPM_V4: &str = "WARREN_SRC_V4";
    /// LRU hash: [`crate::AffinityKey`] -> [`crate::AffinityEntry`]. The programs' own.
    pub const AFFINITY: &str = "WARREN_AFFINITY";
    /// Array of u64: a bit for each port at which a frontend is or was ([`crate::service_port_bit`]). Packets from the underlay
    /// to other ports are not looked at any further.
    pub const SERVICE_PORTS: &str = "WARREN_PORTS";
    /// Hash: cookie of a network namespace (u64) -> [`crate::NamespaceEntry`].
    pub const NAMESPACES: &str = "WARREN_NETNS";
    /// LRU hash: [`crate::SocketKey`] -> [`crate::SocketEntry`]. The programs' own.
    pub const SOCKETS_V4: &str = "WARREN_SOCK_V4";
    /// LPM trie: IPv4 prefix -> u32 (1): destinations that are not masqueraded.
    pub const UNMASQUERADED_LPM_V4: &str = "WARREN_UNMASQ_V4";
    /// LPM trie: IPv4 prefix -> u32 (1): sources whose packets XDP drops.
    pub const DROPPED_LPM_V4: &str = "WARREN_DROP_V4";
    /// Array of u32: the epoch of each shard.
    pub const EPOCHS: &str = "WARREN_EPOCHS";
    /// Per-CPU array of [`crate::Counter`], by [`crate::counter_slot`].
    pub const COUNTERS: &str = "WARREN_COUNTERS";
    /// Ring buffer of [`crate::Event`].
    pub const EVENTS: &str = "WARREN_EVENTS";
    /// Per-CPU array of [`super::Budget`], by [`super::BUDGET_EVENTS`] and [`super::BUDGET_ERRORS`]: the
    /// programs' own, of no use to user space.
    pub const BUDGETS: &str = "WARREN_BUDGETS";
    /// Per-CPU array of one: the packet context, what a program run knows of its packet and decides. The programs' own.
    pub const SCRATCH: &str = "WARREN_SCRATCH";
}

/// Local endpoints at the most. A machine with more workloads than this should be two nodes.
pub const MAX_ENDPOINTS: u32 = 16_384;
/// Exact addresses in the ipcache (Cilium: 512,000).
pub const MAX_IPCACHE: u32 = 524_288;
/// Prefixes in the ipcache: node CIDRs and CIDR identities. LPM lookups grow with the table (FACTS).
pub const MAX_IPCACHE_LPM: u32 = 65_536;
/// Nodes of a fleet, index 0 (no node) and 1 (this node) included.
pub const MAX_NODES: u32 = 8_192;
/// Entries of the flow table: two for each flow.
pub const MAX_FLOWS: u32 = 524_288;
/// Datagrams in fragments at the same time: they live for milliseconds.
pub const MAX_FRAGMENTS: u32 = 8_192;
/// Prefixes that are not masqueraded: the fleet's pools, and some settings.
pub const MAX_UNMASQUERADED: u32 = 1_024;
/// Prefixes whose packets XDP drops: a list that people keep.
pub const MAX_DROPPED: u32 = 16_384;
/// Bytes of the event ring: a power of two and of pages.
pub const EVENT_RING_BYTES: u32 = 1 << 20;
/// Epoch shards, a power of two.
pub const EPOCH_SHARDS: u32 = 4_096;

/// Index of "no node": the address is not behind a tunnel.
pub const NODE_NONE: u32 = 0;
/// Index of this node.
pub const NODE_SELF: u32 = 1;

/// Drop events that a CPU reports in [`BUDGET_WINDOW_NS`] at the most: forged packets must not flood the node with reports.
/// Further drops are in the counters, and counted as lost events.
pub const EVENTS_PER_WINDOW: u32 = 256;
/// ICMP errors that a CPU sends in [`BUDGET_WINDOW_NS`] at the most: Linux's own limit, 1,000 per second
/// (`icmp_msgs_per_sec`).
pub const ERRORS_PER_WINDOW: u32 = 100;
/// The window of [`EVENTS_PER_WINDOW`] and [`ERRORS_PER_WINDOW`], nanoseconds.
pub const BUDGET_WINDOW_NS: u64 = 100_000_000;
/// Index of the budget for events.
pub const BUDGET_EVENTS: u32 = 0;
/// Index of the budget for ICMP errors.
pub const BUDGET_ERRORS: u32 = 1;

/// Inner destination of every tunnel packet, on every node: the receiver rewrites it.
pub const TUNNEL_DST_MAC: MacBytes = *b"\x02WRN\x00\x01";
/// Inner source of every tunnel packet: reveals nothing about the sender's devices.
pub const TUNNEL_SRC_MAC: MacBytes = *b"\x02WRN\x00\x00";

/// Beginning of an inner Ethernet destination that names a backend, for direct server return: the backend's address follows.
/// Unicast and locally administered, as the other two.
pub const DIRECT_DST_MARK: [u8; 2] = *b"\x02D";
/// Beginning of the inner Ethernet source with [`DIRECT_DST_MARK`]: the backend's port follows.
pub const DIRECT_SRC_MARK: [u8; 4] = *b"\x02DSR";

/// The epoch shard of an address (Fibonacci hashing of its words).
pub const fn epoch_shard_v4(address: V4) -> u32 {
    u32::from_be_bytes(address).wrapping_mul(0x9e37_79b1) >> (32 - EPOCH_SHARDS.trailing_zeros())
}

/// Bits of [`NodeConfig::flags`].
pub mod node_flags {
    /// No tunnel (native routing): packets between endpoints travel unchanged, by the routes.
    pub const NATIVE: u32 = 1 << 0;
    /// Packets to local endpoints go by the node's stack, so that its netfilter sees them.
    pub const LEGACY_HOST_ROUTING: u32 = 1 << 1;
    /// What endpoints send to the world gets the node's underlay address as source.
    pub const MASQUERADE: u32 = 1 << 2;
}

/// The node's configuration. One entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// [`crate::ABI_VERSION`] of the build that wrote the entry.
    pub abi_version: u32,
    /// [`node_flags`].
    pub flags: u32,
    /// `warren_host`, in the node's namespace.
    pub host_ifindex: u32,
    /// `warren_net`, the peer of `warren_host`: packets sent out there arrive at the node's stack through `warren_host`.
    pub net_ifindex: u32,
    /// `warren_vxlan`; 0 where there is no tunnel.
    pub vxlan_ifindex: u32,
    /// The underlay interface, where `from_netdev` and `to_netdev` are; 0 where there is none.
    pub underlay_ifindex: u32,
    /// The gateway of this node's endpoints.
    pub gateway_v4: V4,
    /// The node's address on the underlay interface: what masqueraded flows come from. Zero where there is none.
    pub underlay_v4: V4,
    /// MTU of endpoints and of routes to them, bytes from the IP header on. 0: unknown, no packet is too big.
    pub pod_mtu_bytes: u32,
    /// MTU of the underlay interface, likewise.
    pub underlay_mtu_bytes: u32,
    /// UDP port of the tunnel, in host byte order; workloads may not send to it.
    pub tunnel_port: u16,
    /// First port of the masquerade, in host byte order. The range is the programs' alone: the node's own
    /// sockets are given no port in it.
    pub masquerade_port_min: u16,
    /// Last port of the masquerade.
    pub masquerade_port_max: u16,
    /// Of `warren_host`.
    pub host_mac: MacBytes,
}

/// A local endpoint: the same value in both endpoint maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Host side of its veth, or its tap.
    pub ifindex: u32,
    /// Its number on this node (`wrn<id>`).
    pub id: u32,
    /// Its identity.
    pub identity: u32,
    /// Its address; other families follow in entries of their own.
    pub address_v4: V4,
    /// Of the workload's side.
    pub mac: MacBytes,
    /// Of the host side: what answers for the gateway.
    pub host_mac: MacBytes,
}

/// Identity of an address, and the node that the address is behind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpcacheEntry {
    /// Identity, 0 for unknown.
    pub identity: u32,
    /// Node index: [`NODE_NONE`], [`NODE_SELF`] or a remote node's.
    pub node: u32,
}

/// Key of an LPM trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LpmKey<A> {
    /// Bits of the address that count.
    pub prefix_len: u32,
    /// The address.
    pub address: A,
}

/// A node of the fleet, by index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its underlay address; an IPv4 address is IPv4-mapped.
    pub underlay: V6,
    /// 0 no such node, 4 or 6: the underlay's family.
    pub family: u32,
}

/// How often a CPU has done something in the current window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// When the window began, `CLOCK_MONOTONIC_COARSE`.
    pub window_start_ns: u64,
    /// Times in it.
    pub used: u32,
    /// Zero.
    pub pad: u32,
}

abi_bytes! {
    u32 = 4,
    V4 = 4,
    V6 = 16,
    Budget = 16,
    NodeConfig = 52,
    EndpointEntry = 28,
    IpcacheEntry = 8,
    LpmKey<V4> = 8,
    LpmKey<V6> = 20,
    NodeEntry = 20,
}
