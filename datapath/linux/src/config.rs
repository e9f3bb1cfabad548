//! The settings of the datapath.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::Ipv4Network;

/// The protocol number that marks routes as ours (`ip route show proto 112`). In the range that iproute2 leaves to
/// administrators' daemons, and not assigned in its rt_protos.
pub const WARREN_ROUTE_PROTOCOL: u8 = 112;

/// The default folder of an agent's pinned maps, links and programs.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/warren";

/// The datapath's settings. One per agent, fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxConfig {
    /// A folder on a BPF file system for this agent alone; created if it does not exist.
    pub pin_root: PathBuf,
    /// The protocol number of our routes. Routes with other numbers are never touched.
    pub route_protocol: u8,
    /// Translation of services at the socket; `None`: services are translated packet by packet only.
    pub sockets: Option<SocketConfig>,
    /// Forwarding of known flows by XDP; `None`: the classifiers forward all packets.
    pub xdp: Option<XdpConfig>,
    /// Attaches by clsact also where the kernel has TCX: for tests of the path that older kernels take.
    pub force_clsact: bool,
}

impl Default for LinuxConfig {
    fn default() -> Self {
        Self {
            pin_root: DEFAULT_PIN_ROOT.into(),
            route_protocol: WARREN_ROUTE_PROTOCOL,
            sockets: None,
            xdp: None,
            force_clsact: false,
        }
    }
}

impl LinuxConfig {
    /// The default settings with another folder for pins.
    pub fn at(pin_root: impl AsRef<Path>) -> Self {
        Self { pin_root: pin_root.as_ref().into(), ..Self::default() }
    }

    /// The networks whose packets are dropped by XDP.
    pub(crate) fn dropped_networks(&self) -> &[Ipv4Network] {
        self.xdp.as_ref().map_or(&[], |xdp| &xdp.dropped)
    }
}

/// The translation of services at the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// A folder of a cgroup2. Sockets of processes in it and below are translated, in the network namespaces of the node
    /// and its endpoints.
    pub cgroup: PathBuf,
    /// Resets TCP connections to a deleted backend, too. UDP sockets are always ended.
    pub ends_tcp: bool,
}

/// XDP on the underlay's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpConfig {
    /// The place where the program runs.
    pub mode: XdpMode,
    /// Networks whose packets are dropped.
    pub dropped: Vec<Ipv4Network>,
}

/// The place where the XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the device's driver, before an skb is allocated.
    Native,
    /// In the kernel, for any driver: correct, and not much faster than classifiers.
    Generic,
}

/// The choice of the node address that other nodes send tunnel packets to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UnderlayChoice {
    /// The source address towards etcd or a peer, else towards the default route.
    #[default]
    Automatic,
    /// As [`Self::Automatic`], towards these addresses.
    Towards(Vec<IpAddr>),
    /// The first address of an interface.
    Interface(String),
    /// This address.
    Address(IpAddr),
}
