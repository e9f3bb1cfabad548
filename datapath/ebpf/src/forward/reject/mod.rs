//! Telling a sender why its packet goes no further, in the packet's place: by an ICMP error or a TCP reset.

mod icmp;
mod reset;

use datapath_abi::{DropReason, TUNNEL_SRC_MAC};
use datapath_packet::TCP;

use crate::{context::Packet, forward::tunnel, lookup, verdict::Verdict};

/// The way back to the sender.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ReturnPath {
    /// Into the endpoint's device.
    Endpoint,
    /// Through the tunnel, to the node that the packet came from.
    Tunnel,
    /// Up to this node's stack.
    Host,
    /// Out of the underlay interface.
    Underlay,
}

impl ReturnPath {
    /// Whether senders there are told of this reason.
    #[inline(always)]
    fn tells_of(self, reason: DropReason) -> bool {
        match reason {
            DropReason::TtlExceeded => self != Self::Host,
            DropReason::TooBig => matches!(self, Self::Endpoint | Self::Underlay),
            DropReason::NoBackend => self != Self::Tunnel,
            _ => false,
        }
    }
}

/// Makes an error of a dropped packet. `None`: the packet deserves none, or this node has sent enough of them for now.
#[inline(always)]
pub fn send_reject(packet: &Packet, path: ReturnPath, reason: DropReason) -> Option<Verdict> {
    if !path.tells_of(reason) {
        return None;
    }
    let config = lookup::config().ok()?;
    // To a client outside in the name of the address that it asked.
    let own = if path == ReturnPath::Underlay { packet.key.dst } else { config.gateway_v4 };
    let is_made = if matches!(reason, DropReason::NoBackend) && packet.key.protocol == TCP {
        reset::make(packet)
    } else {
        icmp::make(packet, own, reason)
    };
    if !is_made {
        return None;
    }
    match path {
        ReturnPath::Endpoint => Some(Verdict::RedirectPeer(packet.ifindex())),
        ReturnPath::Tunnel => tunnel::send_back(packet, config).ok(),
        ReturnPath::Host => {
            packet.write_macs(config.host_mac, TUNNEL_SRC_MAC).ok()?;
            Some(Verdict::Redirect(config.net_ifindex))
        }
        ReturnPath::Underlay => Some(Verdict::Redirect(packet.ifindex())),
    }
}
