//! The tables that a node's kernel is made of: the same type for what is wanted and what is there.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use identity::Identity;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{BackendId, BackendValue, Base, Frontend, FrontendValue, ServiceId, ServiceValue};

/// Counts what a node wants: raised with every change of its desired state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// The number of an endpoint on its node, in the name of its device (`wrn<id>`). Never 0; not reused while
/// its device exists.
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
    pub const LAST: Self = Self(datapath_abi::MAX_NODES - 1);
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

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

/// How an endpoint is attached.
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
    /// Its one address (for now one family).
    pub address: IpAddr,
    /// Its identity.
    pub identity: Identity,
    /// The workload's Ethernet address.
    pub mac: Mac,
    /// The host side's Ethernet address: the gateway as the workload sees it.
    pub host_mac: Mac,
    /// How it is attached. `None` in what was observed: the kernel does not remember paths; the diff
    /// ignores the difference.
    pub attachment: Option<Attachment>,
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcacheValue {
    /// Identity, `UNKNOWN` where nothing is known.
    pub identity: Identity,
    /// Behind which node.
    pub node: NodeIndex,
}

/// A node of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeValue {
    /// Where tunnel packets go to and come from.
    pub underlay: IpAddr,
}

/// A route of the node's own table to a pod CIDR, marked with our protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteValue {
    /// Where it leads: `None` to `warren_host`, and by the programs wherever they say.
    pub next_hop: Option<NextHop>,
    /// Preferred source: the node's gateway address.
    pub source: IpAddr,
    /// MTU of the route.
    pub mtu_bytes: u32,
}

/// Another node, as routes without tunnel lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Its underlay address, on the same network as this node's.
    pub address: IpAddr,
    /// This node's interface there.
    pub ifindex: u32,
}

/// All of it. Keys of `ipcache` are whole addresses (/32, /128: the hash) and prefixes (the LPM trie) alike,
/// without host bits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// `None` until the node has a CIDR.
    pub base: Option<Base>,
    /// The nodes map and its inverse.
    pub nodes: BTreeMap<NodeIndex, NodeValue>,
    /// The ipcache.
    pub ipcache: BTreeMap<IpNetwork, IpcacheValue>,
    /// Routes to pod CIDRs.
    pub routes: BTreeMap<IpNetwork, RouteValue>,
    /// Local endpoints.
    pub endpoints: BTreeMap<EndpointId, EndpointValue>,
    /// Members of service ports.
    pub backends: BTreeMap<BackendId, BackendValue>,
    /// Service ports.
    pub services: BTreeMap<ServiceId, ServiceValue>,
    /// Where service ports are reached.
    pub frontends: BTreeMap<Frontend, FrontendValue>,
}

/// What the kernel holds, read whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Everything that is as it should be in itself. What is there only in part (a device without its
    /// programs, a map entry without its device) is left out here and named in `broken`, so that the
    /// diff makes it again.
    pub tables: Tables,
    /// Devices, map entries or pins of ours that are there in part.
    pub broken: Vec<String>,
    /// Endpoint devices that are there in any state: their numbers must not be used for another.
    pub endpoint_devices: Vec<EndpointId>,
}
