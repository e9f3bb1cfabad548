//! What the datapath must be told.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnetwork::Ipv4Network;

/// The number that marks routes as ours (`ip route show proto 112`). In the range that iproute2 leaves to
/// administrators' daemons, not taken in its rt_protos.
pub const WARREN_ROUTE_PROTOCOL: u8 = 112;

/// Where an agent pins its maps, links and programs, unless told otherwise.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/warren";

/// The datapath's settings. One per agent, fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxConfig {
    /// A folder on a BPF file system that is this agent's alone; made if it is not there.
    pub pin_root: PathBuf,
    /// The protocol number of our routes; others' are never touched.
    pub route_protocol: u8,
    /// Services at the socket; `None`: only packet by packet.
    pub sockets: Option<SocketConfig>,
    /// Known flows before the stack; `None`: all of them by classifiers.
    pub xdp: Option<XdpConfig>,
    /// Attach by clsact also where the kernel has TCX: for tests of what older kernels get.
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
    /// The defaults with another folder for pins.
    pub fn at(pin_root: impl AsRef<Path>) -> Self {
        Self { pin_root: pin_root.as_ref().into(), ..Self::default() }
    }

    /// The networks whose packets are dropped by XDP.
    pub(crate) fn dropped_networks(&self) -> &[Ipv4Network] {
        self.xdp.as_ref().map_or(&[], |xdp| &xdp.refused)
    }
}

/// How services are translated at the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// A folder of a cgroup2: the processes in it and below it, in the node's and the endpoints' network namespaces.
    pub cgroup: PathBuf,
    /// Whether TCP connections to a backend that is gone are reset, as UDP sockets are ended.
    pub ends_tcp: bool,
}

/// What is done on the underlay's interface before the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpConfig {
    /// By whom.
    pub mode: XdpMode,
    /// Sources that nothing is taken from.
    pub refused: Vec<Ipv4Network>,
}

/// Who runs the program before the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// The device's driver, before the kernel makes a packet of a frame.
    Native,
    /// The kernel, for any driver: correct, and not much faster than classifiers.
    Generic,
}

/// Which of the node's addresses other nodes send tunnel packets to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UnderlayChoice {
    /// The address by which the node would reach one of these (etcd, peers), else that of the default route.
    #[default]
    Automatic,
    /// As [`Self::Automatic`], with addresses to be reached.
    Towards(Vec<IpAddr>),
    /// The first address of an interface.
    Interface(String),
    /// This one.
    Address(IpAddr),
}
