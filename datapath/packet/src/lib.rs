//! Packet logic on plain values, run by the kernel programs and by host tests.
//!
//! Headers, the flow that a packet belongs to, the owner of an address, a decision as two flow entries, whether an entry still
//! holds, when a flow expires.
//!
//! Invariant: nothing here touches a packet in place, a map, a clock or a helper; and nothing can panic, as a
//! program that can does not load.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
#![no_std]

mod arp;
mod checksum;
mod flow;
mod icmp;
mod ipv4;
mod lifetime;
mod masquerade;
mod owner;
mod slot;
mod tcp;
mod translate;
mod transport;
mod tunnel;
mod vxlan;

pub use arp::{Arp, arp_reply};
pub use checksum::of_native as native_checksum;
pub use flow::{EpochSnapshot, FlowEnd, FlowPair, Location, carry_over, comes_from, is_current};
pub use icmp::{IcmpError, Quote, is_error, requoted};
pub use ipv4::{Ipv4, is_unicast};
pub use lifetime::{has_expired, lifetime};
pub use masquerade::{PORT_ATTEMPTS, flow_hash, is_reply_to, is_translatable, port as masquerade_port};
pub use owner::{Owner, OwnerKind};
pub use slot::slot_of;
pub use tcp::{PseudoHeader, Tcp, TcpState, flag, may_end, opens, tcp_state};
pub use translate::{is_checksum_partial, translated_checksum};
pub use transport::{ICMP, PortPlace, SCTP, TCP, Transport, TransportStart, UDP, WirePort, ports};
pub use tunnel::{check_tunnel_source, dsr_backend, dsr_macs, tunnel_identity};
pub use vxlan::{TUNNEL_BYTES, TunnelHeader, is_ecn_the_same, is_tunnel_packet, tunnel_ipv4};

/// A header as it is on the wire: what may be read from and written to a packet whole.
///
/// Its alignment is the one at which the kernel puts headers (4 from the IP header on, `NET_IP_ALIGN`): so the
/// compiler loads words, where for bytes it would make three instructions of each.
///
/// # Safety
/// `#[repr(C)]`, byte arrays only: no padding, every bit pattern valid.
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($type:ty = $size:expr),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: `#[repr(C)]`, byte arrays only; the assert on the size leaves no padding.
        unsafe impl $crate::Wire for $type {}
    )+};
}
pub(crate) use wire;

/// The Ethernet addresses of a frame.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// Destination.
    pub dst: datapath_abi::MacBytes,
    /// Source.
    pub src: datapath_abi::MacBytes,
}

/// The Ethernet header.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination and source.
    pub macs: Macs,
    /// What follows, network byte order: [`ETHERTYPE_IPV4`], [`ETHERTYPE_ARP`], ...
    pub ethertype_be: [u8; 2],
}

/// IPv4, as in [`Ethernet::ethertype_be`].
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// ARP, as in [`Ethernet::ethertype_be`].
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];

/// Bytes of [`Ethernet`].
pub const ETHERNET_BYTES: usize = 14;

wire! { Macs = 12, Ethernet = ETHERNET_BYTES }
