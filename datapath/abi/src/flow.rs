//! The flow table. A flow is two entries, one per direction; an entry says everything that is to be done
//! with a packet of that direction.

use crate::{MacBytes, V4, V6, abi_bytes};

/// A packet's flow and direction.
///
/// ICMP echo: the identifier stands for the port of the end that sends requests, 0 for the port of the other end, so
/// that the keys of request and reply are each other's reverse. Later fragments, ICMP errors and protocols without
/// ports: both ports are 0.
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

/// What is done with packets of a direction ([`FlowEntry::action`]).
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
    /// Out of the underlay interface, whose index is `target`, past this node's stack.
    Underlay = 5,
}

impl FlowAction {
    /// The action of a number, `None` for what this version does not know.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Local),
            2 => Some(Self::Tunnel),
            3 => Some(Self::Host),
            4 => Some(Self::Stack),
            5 => Some(Self::Underlay),
            _ => None,
        }
    }
}

/// Where packets of a direction must come from ([`FlowEntry::source_kind`]). A known flow spares the lookups of the source
/// check, not the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SourceKind {
    /// From the endpoint whose interface index is `source`.
    Endpoint = 1,
    /// From the tunnel, from the node with index `source`.
    Node = 2,
    /// From this node's stack.
    Host = 3,
    /// From the underlay interface, without a tunnel.
    Underlay = 4,
}

impl SourceKind {
    /// The kind of a number, `None` for what this version does not know.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Endpoint),
            2 => Some(Self::Node),
            3 => Some(Self::Host),
            4 => Some(Self::Underlay),
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
    /// Source address and port are replaced.
    pub const REWRITE_SRC: u8 = 1 << 2;
    /// Destination address and port are replaced.
    pub const REWRITE_DST: u8 = 1 << 3;
    /// The two bits of the flow's [`super::PolicyVerdict`].
    pub const POLICY_VERDICT: u8 = 0b11 << POLICY_VERDICT_SHIFT;
    /// How far [`POLICY_VERDICT`] stands from the lowest bit.
    pub const POLICY_VERDICT_SHIFT: u32 = 4;
}

/// What policy said of a flow, kept in both entries ([`flow_flags::POLICY_VERDICT`]). Zero is what entries of builds
/// without policy say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PolicyVerdict {
    /// The flow's packets are forwarded.
    Allow = 0,
}

impl PolicyVerdict {
    /// The verdict as bits of [`FlowEntry::flags`].
    #[inline(always)]
    pub const fn flags(self) -> u8 {
        (self as u8) << flow_flags::POLICY_VERDICT_SHIFT
    }
}

/// One direction of a flow.
///
/// Packets of a direction may be translated: the key is that of a packet as it comes, and the key of the other direction is the
/// reverse of the packet as it goes on ([`FlowEntry::reverse_key`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry<A = V4> {
    /// Packets of this direction.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
    /// When the flow began: `CLOCK_MONOTONIC_COARSE` (`bpf_ktime_get_coarse_ns`), nanoseconds.
    pub created_ns: u64,
    /// When the last packet of this direction came, by the same clock; `created_ns` before the first packet.
    pub last_seen_ns: u64,
    /// What a later build might add: it moves everything that follows.
    #[cfg(feature = "next-layout")]
    pub next: u64,
    /// Sum of the epochs of both shards at the decision; another sum now means that the flow has to be decided again.
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
    /// New source address, with [`flow_flags::REWRITE_SRC`]; else zero.
    pub rewrite_src: A,
    /// New destination address, with [`flow_flags::REWRITE_DST`]. Without that flag: the address of the backend that answers its
    /// client itself (direct server return), else zero.
    pub rewrite_dst: A,
    /// New source port (as in [`FlowKey`]), with [`flow_flags::REWRITE_SRC`]; else zero.
    pub rewrite_src_port_be: [u8; 2],
    /// New destination port, or the port of that backend, likewise.
    pub rewrite_dst_port_be: [u8; 2],
    /// The number of the flow's backend, in both entries; 0: the flow goes to no service; [`crate::BACKEND_ELSEWHERE`].
    pub backend: u32,
}

impl<A: Copy> FlowEntry<A> {
    /// Whether packets of this direction are translated.
    #[inline(always)]
    pub const fn is_translated(&self) -> bool {
        self.flags & (flow_flags::REWRITE_SRC | flow_flags::REWRITE_DST) != 0
    }

    /// Whether both source and destination of this direction's packets are translated.
    #[inline(always)]
    pub const fn is_translated_at_both_ends(&self) -> bool {
        const BOTH: u8 = flow_flags::REWRITE_SRC | flow_flags::REWRITE_DST;
        self.flags & BOTH == BOTH
    }

    /// The key of a packet after translation; `key` is this entry's own.
    #[must_use]
    #[inline(always)]
    pub const fn rewritten(&self, key: &FlowKey<A>) -> FlowKey<A> {
        let mut key = *key;
        if self.flags & flow_flags::REWRITE_SRC != 0 {
            key.src = self.rewrite_src;
            key.src_port_be = self.rewrite_src_port_be;
        }
        if self.flags & flow_flags::REWRITE_DST != 0 {
            key.dst = self.rewrite_dst;
            key.dst_port_be = self.rewrite_dst_port_be;
        }
        key
    }

    /// The key of the flow's other direction; `key` is this entry's own.
    #[must_use]
    #[inline(always)]
    pub const fn reverse_key(&self, key: &FlowKey<A>) -> FlowKey<A> {
        self.rewritten(key).reverse()
    }
}

/// A datagram that comes in fragments.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The datagram's identification, network byte order.
    pub id_be: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// The ports of a datagram, which only the first fragment has; as in [`FlowKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    /// Source port, network byte order.
    pub src_port_be: [u8; 2],
    /// Destination port, network byte order.
    pub dst_port_be: [u8; 2],
}

abi_bytes! {
    FlowKey<V4> = 16,
    FlowKey<V6> = 40,
    FlowEntry<V4> = 88 + 8 * cfg!(feature = "next-layout") as usize,
    FragmentKey<V4> = 12,
    FragmentPorts = 4,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FlowKey<V4> = FlowKey {
        src: [10, 0, 1, 5],
        dst: [198, 51, 100, 9],
        src_port_be: [3, 232],
        dst_port_be: [0, 80],
        protocol: 6,
        pad: [0; 3],
    };

    #[test]
    fn policy_verdict_has_bits_of_its_own_and_zero_allows() {
        use flow_flags::*;
        assert_eq!(PolicyVerdict::Allow.flags(), 0);
        assert_eq!(POLICY_VERDICT & (REPLY | ENDED | REWRITE_SRC | REWRITE_DST), 0);
        assert_eq!(POLICY_VERDICT.trailing_zeros(), POLICY_VERDICT_SHIFT);
    }

    #[test]
    fn flow_entries_of_a_translated_flow_name_each_other() {
        let out = FlowEntry {
            flags: flow_flags::REWRITE_SRC,
            rewrite_src: [192, 0, 2, 1],
            rewrite_src_port_be: [240, 0],
            ..FlowEntry::default()
        };
        let back_key = out.reverse_key(&KEY);
        assert_eq!((back_key.src, back_key.src_port_be), (KEY.dst, KEY.dst_port_be));
        assert_eq!((back_key.dst, back_key.dst_port_be), ([192, 0, 2, 1], [240, 0]));
        let back = FlowEntry {
            flags: flow_flags::REPLY | flow_flags::REWRITE_DST,
            rewrite_dst: KEY.src,
            rewrite_dst_port_be: KEY.src_port_be,
            ..FlowEntry::default()
        };
        assert_eq!(back.reverse_key(&back_key), KEY);
    }

    #[test]
    fn flow_entry_without_translation_has_the_reverse_key_as_the_other_direction() {
        let entry: FlowEntry = FlowEntry { rewrite_src: [1; 4], ..FlowEntry::default() };
        assert_eq!(entry.reverse_key(&KEY), KEY.reverse());
    }
}
