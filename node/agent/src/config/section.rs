//! The settings as types, by section, with their defaults.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use datapath_plan::{HostRouting, Mode};
use identity::{FleetName, Labels, NodeName};
use ipnetwork::IpNetwork;
use node_core::NativeRoutes;

use super::value::{LogFormat, LogLevel, PortRange, StoreKind, XdpKind};

/// `[node]`
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSection {
    /// `None`: the host name.
    pub name: Option<NodeName>,
    pub labels: Labels,
    pub address_reserve: u8,
    /// `None`: `/etc/machine-id`.
    pub machine_id: Option<String>,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
}

/// `[fleet]`
#[derive(Debug, Clone, PartialEq)]
pub struct FleetSection {
    pub name: FleetName,
    pub pools: Vec<IpNetwork>,
    /// `None`: [`DEFAULT_SERVICE_POOL`], if that is free.
    pub service_pools: Option<Vec<IpNetwork>>,
    pub block_prefix_v4: u8,
    pub block_prefix_v6: u8,
    pub tunnel_port: u16,
    pub quarantine: Duration,
    pub address_cooldown: Duration,
    pub collect_interval: Duration,
}

/// The default pool of virtual IPs.
const DEFAULT_SERVICE_POOL: &str = "10.201.0.0/16";

impl FleetSection {
    /// The pools of virtual IPs; none where none is set and the default overlaps `pools`.
    pub fn service_pools(&self) -> Vec<IpNetwork> {
        self.service_pools.clone().unwrap_or_else(|| {
            let default: IpNetwork = DEFAULT_SERVICE_POOL.parse().expect("is a CIDR");
            let overlaps =
                |pool: &IpNetwork| pool.contains(default.network()) || default.contains(pool.network());
            if self.pools.iter().any(overlaps) { Vec::new() } else { vec![default] }
        })
    }
}

/// `[etcd]`
#[derive(Debug, Clone, PartialEq)]
pub struct EtcdSection {
    pub endpoints: Vec<String>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub call_timeout: Duration,
}

/// `[gossip]`
#[derive(Debug, Clone, PartialEq)]
pub struct GossipSection {
    pub port: u16,
    pub key_file: PathBuf,
    pub seeds: Vec<String>,
    pub interval: Duration,
}

/// `[datapath]`
#[derive(Debug, Clone, PartialEq)]
pub struct DatapathSection {
    pub pin_root: PathBuf,
    pub underlay_interface: Option<String>,
    pub underlay_address: Option<IpAddr>,
    pub audit_interval: Duration,
    pub mode: Mode,
    pub host_routing: HostRouting,
    pub native_routes: NativeRoutes,
    /// `None`: as large as the underlay allows.
    pub mtu_bytes: Option<u16>,
    pub socket_lb: bool,
    /// `None`: the mount point of cgroup2.
    pub cgroup: Option<PathBuf>,
    pub socket_lb_ends_tcp: bool,
    pub xdp: XdpKind,
    pub drop_cidrs: Vec<IpNetwork>,
}

/// `[masquerade]`
#[derive(Debug, Clone, PartialEq)]
pub struct MasqueradeSection {
    pub enabled: bool,
    pub ports: PortRange,
    pub exclude: Vec<IpNetwork>,
}

/// `[recorder]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecorderSection {
    /// 0: none.
    pub max_bytes: u32,
}

/// `[identity]`
#[derive(Debug, Clone, PartialEq)]
pub struct IdentitySection {
    pub labels: Vec<String>,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSection {
    pub metrics_listen: SocketAddr,
    pub socket_group: String,
}

/// `[log]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogSection {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// All settings. One per agent, loaded at the start; never changes while the agent runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub store: StoreKind,
    pub node: NodeSection,
    pub fleet: FleetSection,
    pub etcd: EtcdSection,
    pub gossip: GossipSection,
    pub datapath: DatapathSection,
    pub masquerade: MasqueradeSection,
    pub identity: IdentitySection,
    pub recorder: RecorderSection,
    pub http: HttpSection,
    pub log: LogSection,
}

impl Default for Config {
    fn default() -> Self {
        const HOUR: u64 = 3_600;
        Self {
            store: StoreKind::Etcd,
            node: NodeSection {
                name: None,
                labels: Labels::default(),
                address_reserve: 32,
                machine_id: None,
                state_dir: "/var/lib/warren".into(),
                run_dir: "/run/warren".into(),
            },
            fleet: FleetSection {
                name: FleetName::new("default").expect("follows the grammar of names"),
                pools: vec!["10.42.0.0/16".parse().expect("is a CIDR")],
                service_pools: None,
                block_prefix_v4: 24,
                block_prefix_v6: 120,
                tunnel_port: 8472,
                quarantine: Duration::from_secs(HOUR),
                address_cooldown: Duration::from_secs(60),
                collect_interval: Duration::from_secs(HOUR / 4),
            },
            etcd: EtcdSection {
                endpoints: vec!["http://127.0.0.1:2379".to_owned()],
                ca_file: None,
                cert_file: None,
                key_file: None,
                server_name: None,
                user: None,
                password_file: None,
                call_timeout: Duration::from_secs(5),
            },
            gossip: GossipSection {
                port: 8473,
                key_file: "/etc/warren/gossip.key".into(),
                seeds: Vec::new(),
                interval: Duration::from_secs(1),
            },
            datapath: DatapathSection {
                pin_root: "/sys/fs/bpf/warren".into(),
                underlay_interface: None,
                underlay_address: None,
                audit_interval: Duration::from_secs(60),
                mode: Mode::Tunnel,
                host_routing: HostRouting::Bpf,
                native_routes: NativeRoutes::Direct,
                mtu_bytes: None,
                socket_lb: true,
                cgroup: None,
                socket_lb_ends_tcp: false,
                xdp: XdpKind::Off,
                drop_cidrs: Vec::new(),
            },
            // Above Linux's default range of ephemeral ports (32768-60999).
            masquerade: MasqueradeSection {
                enabled: true,
                ports: PortRange { first: 61_000, last: 65_535 },
                exclude: Vec::new(),
            },
            identity: IdentitySection { labels: Vec::new() },
            recorder: RecorderSection { max_bytes: 64 << 20 },
            http: HttpSection {
                metrics_listen: SocketAddr::from(([127, 0, 0, 1], 9964)),
                socket_group: "warren".to_owned(),
            },
            log: LogSection { level: LogLevel::Info, format: LogFormat::Text },
        }
    }
}
