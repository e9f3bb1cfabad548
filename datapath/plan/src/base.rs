//! What everything else on a node stands on: its devices and the settings that the programs are told.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    Prune,
    epochs::Epochs,
    row::{Change, Room, Row},
};

/// The devices and settings that everything else stands on: `warren_host`/`warren_net` with the gateway's
/// address, `warren_vxlan` where there is a tunnel, the configuration map, the programs on them and on the underlay's
/// interface. Exists once a node has a CIDR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The first usable address of the node's first CIDR, on `warren_host` as /32.
    pub gateway: IpAddr,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU of endpoints and of routes to pods: see [`pod_mtu_bytes`].
    pub mtu_bytes: u32,
    /// How packets get to other nodes' endpoints.
    pub mode: Mode,
    /// How they get to this node's.
    pub host_routing: HostRouting,
    /// The interface that leads to other nodes.
    pub underlay: BaseUnderlay,
    /// How endpoints reach what is outside the fleet; `None`: with their own addresses.
    pub masquerade: Option<Masquerade>,
}

/// How packets get from node to node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In VXLAN, with the sender's identity.
    #[default]
    Tunnel,
    /// As they are, by routes.
    Native,
}

/// How packets get to local endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostRouting {
    /// Straight, past the node's stack.
    #[default]
    Bpf,
    /// By the node's stack, and its netfilter.
    Legacy,
}

/// The underlay's interface, as the programs must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseUnderlay {
    /// Its index.
    pub ifindex: u32,
    /// This node's address there.
    pub address: IpAddr,
    /// Its MTU.
    pub mtu_bytes: u32,
}

/// What endpoints send to the world gets the node's underlay address and a port of this range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// First port.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
    /// Destinations that see endpoints' own addresses: the fleet's pools, and what the operator says.
    pub exclude: BTreeSet<IpNetwork>,
}

/// What the tunnel adds to a packet: outer IPv4 (20), UDP (8), VXLAN (8), inner Ethernet (14).
const TUNNEL_OVERHEAD_BYTES: u32 = 50;

/// MTU of endpoints and of routes to them: what fits into one packet of the underlay.
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
