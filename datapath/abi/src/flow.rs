//! The flow table. A flow is two entries, one per direction; an entry says everything that is to be done
//! with a packet of that direction.

use crate::{MacBytes, V4, V6, abi_bytes};

/// A packet's flow and direction.
///
/// ICMP echo: the identifier stands for the port of the side that asks, 0 for the port of the other, so
/// that request and answer are each other's reverse. Fragments but the first, ICMP errors and protocols
/// without ports: both ports 0.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, network byte order.
    pub src_port_be: [u8; 2],
    /// Destination port, network byte order.
    pub dst_port_be: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl<A: Copy> FlowKey<A> {
    /// The key of the other direction.
    #[must_use]
    pub const fn reverse(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port_be: self.dst_port_be,
            dst_port_be: self.src_port_be,
            protocol: self.protocol,
            pad: self.pad,
        }
    }
}

/// What is done with a packet ([`FlowEntry::action`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowAction {
    /// To a local endpoint: `target` is its interface index.
    Local = 1,
    /// Through the tunnel: `target` is the node's index.
    Tunnel = 2,
    /// To this node's own stack.
    Host = 3,
    /// Onwards by this node's routing.
    Stack = 4,
}

impl FlowAction {
    /// The action of a number, `None` for what this version does not know.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Local),
            2 => Some(Self::Tunnel),
            3 => Some(Self::Host),
            4 => Some(Self::Stack),
            _ => None,
        }
    }
}

/// Where packets of a direction must come from ([`FlowEntry::source_kind`]): a known flow spares the
/// lookups of the source check, not the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SourceKind {
    /// From the endpoint whose interface index is `source`.
    Endpoint = 1,
    /// From the tunnel, from the node with index `source`.
    Node = 2,
    /// From this node's stack.
    Host = 3,
}

impl SourceKind {
    /// The kind of a number, `None` for what this version does not know.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Endpoint),
            2 => Some(Self::Node),
            3 => Some(Self::Host),
            _ => None,
        }
    }
}

/// Bits of [`FlowEntry::flags`].
pub mod flow_flags {
    /// The direction opposite to the first packet's.
    pub const REPLY: u8 = 1 << 0;
    /// The end of the flow was reported.
    pub const ENDED: u8 = 1 << 1;
}

/// One direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// Packets of this direction.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
    /// When the flow began: `CLOCK_MONOTONIC_COARSE` (`bpf_ktime_get_coarse_ns`), nanoseconds.
    pub created_ns: u64,
    /// When the last packet of this direction came, same clock; equal to `created_ns` while none has come.
    pub last_seen_ns: u64,
    /// Sum of the epochs of both shards when it was decided; another sum now means: decide again.
    pub epoch: u32,
    /// Interface or node index that packets must come from.
    pub source: u32,
    /// Interface or node index that packets go to.
    pub target: u32,
    /// Identity of the sender of this direction.
    pub src_identity: u32,
    /// Identity of its receiver.
    pub dst_identity: u32,
    /// Epoch shard of the source address.
    pub src_shard: u16,
    /// Epoch shard of the destination address.
    pub dst_shard: u16,
    /// [`FlowAction`].
    pub action: u8,
    /// [`SourceKind`].
    pub source_kind: u8,
    /// [`flow_flags`].
    pub flags: u8,
    /// TCP flags seen in this direction, or-ed.
    pub tcp_flags: u8,
    /// Written into the packet, unless the action is [`FlowAction::Stack`].
    pub dst_mac: MacBytes,
    /// Written into the packet, unless the action is [`FlowAction::Stack`].
    pub src_mac: MacBytes,
}

abi_bytes! {
    FlowKey<V4> = 16,
    FlowKey<V6> = 40,
    FlowEntry = 72,
}
