//! The node of these tests: two endpoints, two other nodes, the world.

use datapath_abi::{
    ABI_VERSION, EndpointEntry, FlowAction, IpcacheEntry, LpmKey, MacBytes, NODE_NONE, NODE_SELF, NodeConfig,
    NodeEntry, SourceKind, V4, V6, epoch_shard_v4, map_name,
};

use crate::kernel::{Kernel, Tunnel};

/// A sender or receiver, and what this node's flow entries say about it.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: V4,
    pub identity: u32,
    pub source: (SourceKind, u32),
    pub action: (FlowAction, u32),
    /// Ethernet addresses of frames to the peer; frames from its device have them swapped.
    pub dst_mac: MacBytes,
    pub src_mac: MacBytes,
}

pub const HOST: u32 = 1;
pub const WORLD: u32 = 2;
/// A sender whose address is known, without proof that it is the sender.
pub const UNMANAGED: u32 = 3;
pub const REMOTE_NODE: u32 = 6;

/// The loopback device, on which BPF_PROG_TEST_RUN runs programs: the tests need no device of their own.
pub const HERE: u32 = 1;
const B_IFINDEX: u32 = 112;

const TUNNEL_MACS: (MacBytes, MacBytes) = (*b"\x02WRN\x00\x01", *b"\x02WRN\x00\x00");
const WARREN_HOST_MAC: MacBytes = [2, 0, 0, 0, 1, 1];
pub const TUNNEL_PORT: u16 = 8472;

pub const CONFIG: NodeConfig = NodeConfig {
    abi_version: ABI_VERSION,
    flags: 0,
    host_ifindex: 120,
    net_ifindex: 121,
    vxlan_ifindex: 122,
    underlay_ifindex: 123,
    gateway_v4: GATEWAY.address,
    underlay_v4: UNDERLAY.address,
    pod_mtu_bytes: 1450,
    underlay_mtu_bytes: 1500,
    tunnel_port: TUNNEL_PORT,
    masquerade_port_min: 61_000,
    masquerade_port_max: 61_999,
    host_mac: WARREN_HOST_MAC,
};

/// The endpoint whose device the programs run on.
pub const A: Peer = Peer {
    address: [10, 0, 1, 5],
    identity: 300,
    source: (SourceKind::Endpoint, HERE),
    action: (FlowAction::Local, HERE),
    dst_mac: [2, 0, 0, 0, 0, 0xa],
    src_mac: [2, 0, 0, 0, 1, 0xa],
};
/// Another endpoint of this node.
pub const B: Peer = Peer {
    address: [10, 0, 1, 6],
    identity: 301,
    source: (SourceKind::Endpoint, B_IFINDEX),
    action: (FlowAction::Local, B_IFINDEX),
    dst_mac: [2, 0, 0, 0, 0, 0xb],
    src_mac: [2, 0, 0, 0, 1, 0xb],
};
/// This node, by its gateway address.
pub const GATEWAY: Peer = Peer {
    address: [10, 0, 1, 1],
    identity: HOST,
    source: (SourceKind::Host, 0),
    action: (FlowAction::Host, 0),
    dst_mac: WARREN_HOST_MAC,
    src_mac: TUNNEL_MACS.1,
};
/// This node, by its underlay address.
pub const UNDERLAY: Peer = Peer { address: [192, 0, 2, 1], ..GATEWAY };
/// An endpoint of node 5.
pub const R: Peer = Peer {
    address: [10, 0, 2, 7],
    identity: 400,
    source: (SourceKind::Node, 5),
    action: (FlowAction::Tunnel, 5),
    dst_mac: TUNNEL_MACS.0,
    src_mac: TUNNEL_MACS.1,
};
/// In node 5's CIDR; nothing more is known.
pub const UNKNOWN_AT_5: Peer = Peer { address: [10, 0, 2, 99], identity: 0, ..R };
/// Node 5 itself, by its gateway address.
pub const GATEWAY_OF_5: Peer = Peer { address: [10, 0, 2, 1], identity: REMOTE_NODE, ..R };
/// Node 5 itself, by its underlay address.
pub const NODE_5: Peer = Peer { address: [192, 0, 2, 5], identity: REMOTE_NODE, ..R };
/// In node 6's CIDR.
pub const AT_6: Peer = Peer {
    address: [10, 0, 3, 7],
    identity: 0,
    source: (SourceKind::Node, 6),
    action: (FlowAction::Tunnel, 6),
    ..R
};
/// Outside the fleet.
pub const INTERNET: Peer = Peer {
    address: [198, 51, 100, 9],
    identity: WORLD,
    source: (SourceKind::Host, 0),
    action: (FlowAction::Stack, 0),
    dst_mac: WARREN_HOST_MAC,
    src_mac: TUNNEL_MACS.1,
};
/// Outside the fleet, with a CIDR identity.
pub const PARTNER: Peer = Peer { address: [203, 0, 113, 7], identity: (1 << 24) + 1, ..INTERNET };
/// An address of this node's CIDR that no endpoint has.
pub const UNASSIGNED: Peer = Peer { address: [10, 0, 1, 77], identity: 0, ..INTERNET };

/// The origin of what node 5 sends in the name of `peer`.
pub fn tunnel_from(peer: &Peer) -> Tunnel {
    Tunnel { identity: peer.identity, underlay: NODE_5.address }
}

/// Each shard has another epoch, so that a sum of the wrong ones shows.
pub fn epoch_of(address: V4) -> u32 {
    1000 + epoch_shard_v4(address)
}

pub fn endpoint(peer: &Peer, id: u32) -> EndpointEntry {
    EndpointEntry {
        ifindex: peer.action.1,
        id,
        identity: peer.identity,
        address_v4: peer.address,
        mac: peer.dst_mac,
        host_mac: peer.src_mac,
    }
}

/// The address as an IPv4-mapped one (RFC 4291, 2.5.5.2).
pub fn mapped(address: V4) -> V6 {
    let mut bytes = [0; 16];
    bytes[10..12].fill(0xff);
    bytes[12..].copy_from_slice(&address);
    bytes
}

fn node(address: V4) -> NodeEntry {
    NodeEntry { underlay: mapped(address), family: 4 }
}

/// Replaces the node's configuration.
pub fn configure(kernel: &mut Kernel, config: NodeConfig) {
    kernel.set(map_name::CONFIG, &0u32, &config);
}

/// Invalidates the flows of an address; a second call changes nothing more.
pub fn bump_epoch(kernel: &mut Kernel, address: V4) {
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(address), &(epoch_of(address) + 1));
}

/// Gives an address its first epoch, also after [`bump_epoch`].
pub fn reset_epoch(kernel: &mut Kernel, address: V4) {
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(address), &epoch_of(address));
}

/// Fills the maps as an agent would.
pub fn populate_maps(kernel: &mut Kernel) {
    configure(kernel, CONFIG);
    for (peer, id) in [(&A, 1), (&B, 2)] {
        let entry = endpoint(peer, id);
        kernel.set(map_name::ENDPOINTS_BY_IFINDEX, &entry.ifindex, &entry);
        kernel.set(map_name::ENDPOINTS_V4, &entry.address_v4, &entry);
    }
    for (index, address) in [(1u32, UNDERLAY.address), (5, NODE_5.address), (6, [192, 0, 2, 6])] {
        kernel.set(map_name::NODES, &index, &node(address));
        kernel.set(map_name::NODE_BY_ADDRESS_V4, &address, &index);
    }
    for (peer, node) in [
        (&A, NODE_SELF),
        (&B, NODE_SELF),
        (&GATEWAY, NODE_SELF),
        (&UNDERLAY, NODE_SELF),
        (&R, 5),
        (&GATEWAY_OF_5, 5),
        (&NODE_5, 5),
    ] {
        kernel.set(map_name::IPCACHE_V4, &peer.address, &IpcacheEntry { identity: peer.identity, node });
    }
    for (address, prefix_len, identity, node) in [
        ([10, 0, 1, 0], 24, 0, NODE_SELF),
        ([10, 0, 2, 0], 24, 0, 5),
        ([10, 0, 3, 0], 24, 0, 6),
        ([203, 0, 113, 0], 24, PARTNER.identity, NODE_NONE),
    ] {
        let key = LpmKey { prefix_len, address };
        kernel.set(map_name::IPCACHE_LPM_V4, &key, &IpcacheEntry { identity, node });
    }
    for address in [A, B, GATEWAY, UNDERLAY, R, UNKNOWN_AT_5, GATEWAY_OF_5, NODE_5, AT_6, INTERNET, PARTNER]
        .map(|peer| peer.address)
    {
        reset_epoch(kernel, address);
    }
}
