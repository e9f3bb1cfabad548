//! Rows of the tables that lead packets to endpoints: nodes, ipcache, routes, endpoints.

use std::{fmt, net::IpAddr, path::PathBuf};

use datapath_abi::{MAX_ENDPOINTS, MAX_IPCACHE, MAX_IPCACHE_LPM, MAX_NODES};
use identity::Identity;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    Prune,
    epochs::{Epochs, is_exact},
    row::{Change, Room, Row},
};

/// The number of an endpoint on its node, in the name of its device (`wrn<id>`). Never 0; not reused while the device
/// exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointId(pub u32);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The index of a node in this node's `nodes` map: 0 no node, 1 this node, others as they come. Local: two
/// nodes number the fleet differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeIndex(pub u32);

impl NodeIndex {
    /// The address is not behind a tunnel.
    pub const NONE: Self = Self(datapath_abi::NODE_NONE);
    /// This node.
    pub const SELF: Self = Self(datapath_abi::NODE_SELF);
    /// The highest.
    pub const LAST: Self = Self(MAX_NODES - 1);
}

impl fmt::Display for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address. Serialized as text where people read it, for `/v1/state`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => serializer.serialize_newtype_struct("Mac", &self.0),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place where a workload meets its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// A veth pair whose other end is `eth0` (by default) in a network namespace.
    Netns {
        /// A path that names the namespace: `/run/netns/NAME`, `/proc/PID/ns/net`.
        path: PathBuf,
        /// The interface's name inside.
        interface: String,
    },
}

/// An endpoint in the kernel: device `wrn<id>`, its peer's address and routes, its programs, its entries in
/// both endpoint maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointValue {
    /// The endpoint's one address (of one family, for now).
    pub address: IpAddr,
    /// The endpoint's identity.
    pub identity: Identity,
    /// The workload's Ethernet address.
    pub mac: Mac,
    /// The host side's Ethernet address: the gateway as the workload sees it.
    pub host_mac: Mac,
    /// How the endpoint is attached. `None` in observed tables: the kernel does not remember paths, and the diff
    /// ignores the difference.
    pub attachment: Option<Attachment>,
}

/// Identity and node of an address or prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcacheValue {
    /// The identity; `UNKNOWN` of a prefix whose addresses have no identity in common.
    pub identity: Identity,
    /// The node behind which the address is.
    pub node: NodeIndex,
}

/// A node of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeValue {
    /// The address that tunnel packets are sent to and accepted from.
    pub underlay: IpAddr,
}

/// A route of the node's main table to a pod CIDR or service pool, marked with our protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteValue {
    /// The next hop. `None`: the route leads to `warren_host`, and the programs decide.
    pub next_hop: Option<NextHop>,
    /// Preferred source: the node's gateway address.
    pub source: IpAddr,
    /// MTU of the route.
    pub mtu_bytes: u32,
}

/// Another node as the next hop of a route, without a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// The node's underlay address, on the same network as this node's.
    pub address: IpAddr,
    /// This node's interface on that network.
    pub ifindex: u32,
}

impl Row for NodeValue {
    const NAME: &'static str = "nodes";
    /// Index 0 is no node's.
    const ROOMS: &'static [Room] = &[Room { name: "nodes", max: MAX_NODES as usize - 1 }];

    fn may_be_pruned(prune: &Prune) -> bool {
        prune.nodes
    }

    fn unique_address(&self) -> Option<IpAddr> {
        Some(self.underlay)
    }

    /// None: programs look nodes up by index for every packet.
    fn concerns(_: &Change<'_, Self>, _: &mut Epochs) {}
}

impl IpcacheValue {
    /// The hash map of whole addresses.
    pub(crate) const EXACT: Room = Room { name: "ipcache (addresses)", max: MAX_IPCACHE as usize };
    /// The LPM trie.
    const PREFIXES: Room = Room { name: "ipcache (prefixes)", max: MAX_IPCACHE_LPM as usize };
}

impl Row for IpcacheValue {
    const NAME: &'static str = "ipcache";
    const ROOMS: &'static [Room] = &[Self::EXACT, Self::PREFIXES];

    fn room(prefix: &IpNetwork) -> usize {
        usize::from(!is_exact(prefix))
    }

    fn may_be_pruned(prune: &Prune) -> bool {
        prune.ipcache
    }

    fn concerns(change: &Change<'_, Self>, epochs: &mut Epochs) {
        epochs.prefix(change.key);
    }
}

impl Row for RouteValue {
    const NAME: &'static str = "routes";
    const ROOMS: &'static [Room] = &[];

    fn may_be_pruned(prune: &Prune) -> bool {
        prune.routes
    }

    /// None: the node's stack looks routes up for every packet.
    fn concerns(_: &Change<'_, Self>, _: &mut Epochs) {}
}

impl EndpointValue {
    pub(crate) const ROOM: Room = Room { name: "endpoints", max: MAX_ENDPOINTS as usize };
}

impl Row for EndpointValue {
    const NAME: &'static str = "endpoints";
    const ROOMS: &'static [Room] = &[Self::ROOM];
    const IS_SLOW: bool = true;

    fn may_be_pruned(prune: &Prune) -> bool {
        prune.endpoints
    }

    /// The kernel does not remember how an endpoint is attached.
    fn is_same(&self, other: &Self) -> bool {
        (self.address, self.identity, self.mac, self.host_mac)
            == (other.address, other.identity, other.mac, other.host_mac)
    }

    fn unique_address(&self) -> Option<IpAddr> {
        Some(self.address)
    }

    fn concerns(change: &Change<'_, Self>, epochs: &mut Epochs) {
        for endpoint in change.had.iter().chain(&change.wanted) {
            epochs.address(endpoint.address);
        }
    }
}

impl fmt::Display for NodeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "underlay {}", self.underlay)
    }
}

impl fmt::Display for IpcacheValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identity {} node {}", self.identity, self.node)
    }
}

impl fmt::Display for RouteValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(NextHop { address, ifindex }) = self.next_hop {
            write!(f, "via {address} at {ifindex} ")?;
        }
        write!(f, "source {} mtu {}", self.source, self.mtu_bytes)
    }
}

impl fmt::Display for EndpointValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, identity, mac, host_mac, .. } = self;
        write!(f, "address {address} identity {identity} mac {mac} host mac {host_mac}")
    }
}
