//! The base: the devices of a node and the settings of its programs, which all other tables depend on.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    Prune,
    epochs::Epochs,
    row::{Change, Room, Row},
};

/// The devices and settings that all other tables depend on: `warren_host`/`warren_net` with the gateway's address,
/// `warren_vxlan` where there is a tunnel, the configuration map, the programs at these devices and at the underlay's
/// interface. Exists once a node has a CIDR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The first usable address of the node's first CIDR, on `warren_host` as /32.
    pub gateway: IpAddr,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU of endpoints and of routes to pods: see [`pod_mtu_bytes`].
    pub mtu_bytes: u32,
    /// The way of packets to endpoints of other nodes.
    pub mode: Mode,
    /// The way of packets to endpoints of this node.
    pub host_routing: HostRouting,
    /// The interface towards other nodes.
    pub underlay: BaseUnderlay,
    /// The masquerade of endpoints towards the world; `None`: they use their own addresses.
    pub masquerade: Option<Masquerade>,
}

/// The way of packets from node to node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Through the tunnel, with the sender's identity.
    #[default]
    Tunnel,
    /// Unchanged, by routes.
    Native,
}

/// The way of packets to local endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostRouting {
    /// Directly, past the node's stack.
    #[default]
    Bpf,
    /// Through the node's stack and its netfilter.
    Legacy,
}

/// The properties of the underlay's interface that the programs need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseUnderlay {
    /// Its index.
    pub ifindex: u32,
    /// This node's address there.
    pub address: IpAddr,
    /// Its MTU.
    pub mtu_bytes: u32,
}

/// Packets of endpoints to the world get the node's underlay address and a port of this range as source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// First port.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
    /// Destinations that are not masqueraded: the fleet's pools, and prefixes of the operator.
    pub exclude: BTreeSet<IpNetwork>,
}

/// The bytes that the tunnel adds to a packet: outer IPv4 (20), UDP (8), VXLAN (8), inner Ethernet (14).
const TUNNEL_OVERHEAD_BYTES: u32 = 50;

/// MTU of endpoints and of routes to them: the largest packet that fits into one packet of the underlay.
pub const fn pod_mtu_bytes(mode: Mode, underlay_mtu_bytes: u32) -> u32 {
    match mode {
        Mode::Tunnel => underlay_mtu_bytes.saturating_sub(TUNNEL_OVERHEAD_BYTES),
        Mode::Native => underlay_mtu_bytes,
    }
}

impl Mode {
    /// The word, as in the configuration and in records.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Native => "native",
        }
    }
}

impl HostRouting {
    /// The word, as in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gateway, tunnel_port, mtu_bytes, mode, host_routing, underlay, masquerade } = self;
        write!(
            f,
            "gateway {gateway} port {tunnel_port} mtu {mtu_bytes} {} {} underlay {} at {} mtu {}",
            mode.word(),
            host_routing.word(),
            underlay.address,
            underlay.ifindex,
            underlay.mtu_bytes
        )?;
        if let Some(Masquerade { first_port, last_port, exclude }) = masquerade {
            write!(f, " masquerade {first_port}-{last_port}")?;
            exclude.iter().try_for_each(|prefix| write!(f, " not {prefix}"))?;
        }
        Ok(())
    }
}

impl Row for Base {
    const NAME: &'static str = "base";
    const ROOMS: &'static [Room] = &[];
    const REMOVABLE: bool = false;

    fn may_be_pruned(_: &Prune) -> bool {
        false
    }

    /// All: entries of flows to the node hold the Ethernet address of its device, which another device changes.
    fn concerns(_: &Change<'_, Self>, epochs: &mut Epochs) {
        epochs.all();
    }
}
