//! Events that the programs report through the ring buffer.

use crate::{V6, abi_bytes};

/// What happened ([`Event::kind`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// The first packet of a flow.
    FlowNew = 1,
    /// A flow ended: TCP closed or reset. User space ends silent flows.
    FlowEnd = 2,
    /// A packet was dropped.
    Drop = 3,
}

/// One report. Addresses are IPv4-mapped where `family` is 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `bpf_ktime_get_ns`.
    pub time_ns: u64,
    /// Packets of the flow so far, both directions (end of flow).
    pub packets: u64,
    /// Bytes of the flow so far, both directions; of the packet (drop).
    pub bytes: u64,
    /// Source address.
    pub src: V6,
    /// Destination address.
    pub dst: V6,
    /// Identity of the source, 0 for unknown.
    pub src_identity: u32,
    /// Identity of the destination, 0 for unknown.
    pub dst_identity: u32,
    /// Interface where the program ran.
    pub ifindex: u32,
    /// Underlay IPv4 address that a tunnel packet came from, else 0.
    pub outer_src_v4: [u8; 4],
    /// Source port or ICMP identifier, network byte order.
    pub src_port_be: [u8; 2],
    /// Destination port, network byte order.
    pub dst_port_be: [u8; 2],
    /// [`EventKind`].
    pub kind: u8,
    /// [`crate::DropReason`], 0 unless a drop.
    pub reason: u8,
    /// [`crate::Direction`].
    pub direction: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6, 0 when the packet is neither.
    pub family: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// [`crate::FlowAction`], 0 for a drop.
    pub action: u8,
    /// Zero.
    pub pad: [u8; 5],
}

abi_bytes! {
    Event = 88,
}
