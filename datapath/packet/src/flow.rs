//! A decision as the two entries of a flow, and whether an entry still holds.

use datapath_abi::{
    EndpointEntry, FlowAction, FlowEntry, FlowKey, MacBytes, SourceKind, TUNNEL_DST_MAC, TUNNEL_SRC_MAC, V4,
    flow_flags,
};

/// Where one end of a flow is, seen from this node. It answers both questions about an end: what is done with
/// packets to it, and where packets from it must come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The local endpoint behind this interface.
    Endpoint(u32),
    /// Behind the node with this index.
    Node(u32),
    /// This node itself.
    Host,
    /// Wherever this node's routing says.
    Stack,
    /// Out of the underlay interface with this index, past the stack.
    Underlay(u32),
}

impl Place {
    /// What is done with packets to it: action and target.
    #[inline(always)]
    pub const fn action(self) -> (FlowAction, u32) {
        match self {
            Self::Endpoint(ifindex) => (FlowAction::Local, ifindex),
            Self::Node(index) => (FlowAction::Tunnel, index),
            Self::Host => (FlowAction::Host, 0),
            Self::Stack => (FlowAction::Stack, 0),
            Self::Underlay(ifindex) => (FlowAction::Underlay, ifindex),
        }
    }

    /// Where packets from it come from: kind and index. What is routed comes by the node's stack, as its own.
    #[inline(always)]
    pub const fn source(self) -> (SourceKind, u32) {
        match self {
            Self::Endpoint(ifindex) => (SourceKind::Endpoint, ifindex),
            Self::Node(index) => (SourceKind::Node, index),
            Self::Host | Self::Stack => (SourceKind::Host, 0),
            Self::Underlay(_) => (SourceKind::Underlay, 0),
        }
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Where it is.
    pub place: Place,
    /// Who it is.
    pub identity: u32,
    /// Epoch shard of its address.
    pub shard: u16,
    /// Ethernet destination of packets to it.
    pub dst_mac: MacBytes,
    /// Ethernet source of packets to it.
    pub src_mac: MacBytes,
}

impl Side {
    /// A local endpoint.
    #[inline(always)]
    pub const fn endpoint(endpoint: &EndpointEntry, shard: u16) -> Self {
        Self {
            place: Place::Endpoint(endpoint.ifindex),
            identity: endpoint.identity,
            shard,
            dst_mac: endpoint.mac,
            src_mac: endpoint.host_mac,
        }
    }

    /// Somebody behind the node with index `index`.
    #[inline(always)]
    pub const fn node(index: u32, identity: u32, shard: u16) -> Self {
        Self { place: Place::Node(index), identity, shard, dst_mac: TUNNEL_DST_MAC, src_mac: TUNNEL_SRC_MAC }
    }

    /// Reached by the node's stack ([`Place::Host`] or [`Place::Stack`]) or beside it ([`Place::Underlay`], whose
    /// Ethernet addresses the kernel finds); `host_mac` is `warren_host`'s.
    #[inline(always)]
    pub const fn stack(place: Place, identity: u32, shard: u16, host_mac: MacBytes) -> Self {
        Self { place, identity, shard, dst_mac: host_mac, src_mac: TUNNEL_SRC_MAC }
    }
}

/// Both entries of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halves {
    /// Of the direction that is being decided.
    pub forward: FlowEntry,
    /// Of the opposite one.
    pub reverse: FlowEntry,
}

impl Halves {
    /// A new flow from one side to the other, without packets yet. `epoch`: sum of both shards' epochs, read
    /// before the maps that the decision was made from.
    #[inline(always)]
    pub fn between(from: &Side, to: &Side, epoch: u32, now_ns: u64) -> Self {
        Self {
            forward: half(from, to, epoch, now_ns, 0),
            reverse: half(to, from, epoch, now_ns, flow_flags::REPLY),
        }
    }

    /// Gives the forward direction, whose packets have the key `key`, another source: packets of the reverse one
    /// come to that, and get back the source that there was.
    #[inline(always)]
    pub fn replace_source(&mut self, key: &FlowKey<V4>, address: V4, port_be: [u8; 2]) {
        self.forward.flags |= flow_flags::REWRITE_SRC;
        self.forward.rewrite_src = address;
        self.forward.rewrite_src_port_be = port_be;
        self.reverse.flags |= flow_flags::REWRITE_DST;
        self.reverse.rewrite_dst = key.src;
        self.reverse.rewrite_dst_port_be = key.src_port_be;
    }

    /// As [`Self::replace_source`]; packets of the reverse direction come from the underlay.
    #[inline(always)]
    pub fn masquerade(&mut self, key: &FlowKey<V4>, address: V4, port_be: [u8; 2]) {
        self.replace_source(key, address, port_be);
        self.reverse.source_kind = SourceKind::Underlay as u8;
        self.reverse.source = 0;
    }

    /// Gives the forward direction, whose packets go to a service's frontend, the place of one of its backends as
    /// destination: packets of the reverse one come from there, and get the frontend as source.
    #[inline(always)]
    pub fn serve(&mut self, backend: u32, frontend: (V4, [u8; 2]), place: (V4, [u8; 2])) {
        self.forward.flags |= flow_flags::REWRITE_DST;
        (self.forward.rewrite_dst, self.forward.rewrite_dst_port_be) = place;
        self.forward.backend = backend;
        self.reverse.flags |= flow_flags::REWRITE_SRC;
        (self.reverse.rewrite_src, self.reverse.rewrite_src_port_be) = frontend;
        self.reverse.backend = backend;
    }

    /// As [`Self::serve`] of a backend that answers its client itself: packets go there as they are, and none comes back.
    #[inline(always)]
    pub fn name(&mut self, backend: u32, place: (V4, [u8; 2])) {
        (self.forward.rewrite_dst, self.forward.rewrite_dst_port_be) = place;
        self.forward.backend = backend;
        self.reverse.backend = backend;
    }

    /// The same flow, seen from the other direction.
    #[inline(always)]
    pub fn turn(&mut self) {
        core::mem::swap(&mut self.forward, &mut self.reverse);
    }
}

/// Bits that a decision sets; the others are the flow's memory.
const DECIDED: u8 = flow_flags::REWRITE_SRC | flow_flags::REWRITE_DST;

#[inline(always)]
fn half(from: &Side, to: &Side, epoch: u32, now_ns: u64, flags: u8) -> FlowEntry {
    let (action, target) = to.place.action();
    let (source_kind, source) = from.place.source();
    FlowEntry {
        packets: 0,
        bytes: 0,
        created_ns: now_ns,
        last_seen_ns: now_ns,
        epoch,
        source,
        target,
        src_identity: from.identity,
        dst_identity: to.identity,
        src_shard: from.shard,
        dst_shard: to.shard,
        action: action as u8,
        source_kind: source_kind as u8,
        flags,
        tcp_flags: 0,
        dst_mac: to.dst_mac,
        src_mac: to.src_mac,
        rewrite_src: [0; 4],
        rewrite_dst: [0; 4],
        rewrite_src_port_be: [0; 2],
        rewrite_dst_port_be: [0; 2],
        ..FlowEntry::default()
    }
}

/// Makes a new decision about a known flow its continuation: counts, times, TCP flags and which direction was
/// first stay, also when one half is missing. `opens`: the packet begins a connection, so that what is left of
/// an ended flow is not continued.
///
/// Returns whether there was something to continue; `false`: the flow is new.
#[inline(always)]
pub fn carry_over(
    new: &mut Halves,
    forward: Option<&FlowEntry>,
    reverse: Option<&FlowEntry>,
    opens: bool,
) -> bool {
    let flags = match (forward, reverse) {
        (Some(old), _) => old.flags,
        (None, Some(old)) => old.flags ^ flow_flags::REPLY,
        (None, None) => return false,
    };
    if opens && flags & flow_flags::ENDED != 0 {
        return false;
    }
    new.forward.flags = new.forward.flags & DECIDED | flags & !DECIDED;
    new.reverse.flags = new.reverse.flags & DECIDED | (flags ^ flow_flags::REPLY) & !DECIDED;
    if let Some(old) = forward {
        continue_half(&mut new.forward, old);
    }
    if let Some(old) = reverse {
        continue_half(&mut new.reverse, old);
    }
    true
}

#[inline(always)]
fn continue_half(new: &mut FlowEntry, old: &FlowEntry) {
    new.packets = old.packets;
    new.bytes = old.bytes;
    new.created_ns = old.created_ns;
    new.last_seen_ns = old.last_seen_ns;
    new.tcp_flags = old.tcp_flags;
}

/// Whether the decision is as new as what it depends on. The epochs are those of the entry's shards, now.
#[inline(always)]
pub fn is_current(entry: &FlowEntry, src_epoch: u32, dst_epoch: u32) -> bool {
    entry.epoch == src_epoch.wrapping_add(dst_epoch)
}

/// Whether the entry is for packets from there: what spares a known flow the source check's lookups.
#[inline(always)]
pub fn comes_from(entry: &FlowEntry, kind: SourceKind, source: u32) -> bool {
    entry.source_kind == kind as u8 && entry.source == source
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: EndpointEntry = EndpointEntry {
        ifindex: 7,
        id: 1,
        identity: 300,
        address_v4: [10, 0, 1, 5],
        mac: [2, 0, 0, 0, 0, 5],
        host_mac: [2, 0, 0, 0, 0, 6],
    };

    fn to_node() -> Halves {
        Halves::between(&Side::endpoint(&ENDPOINT, 11), &Side::node(4, 400, 12), 3, 1_000)
    }

    #[test]
    fn halves_mirror_each_other() {
        let Halves { forward, reverse } = to_node();
        assert_eq!((forward.action, forward.target), (FlowAction::Tunnel as u8, 4));
        assert_eq!((forward.source_kind, forward.source), (SourceKind::Endpoint as u8, 7));
        assert_eq!((reverse.action, reverse.target), (FlowAction::Local as u8, 7));
        assert_eq!((reverse.source_kind, reverse.source), (SourceKind::Node as u8, 4));
        assert_eq!((forward.src_identity, forward.dst_identity), (300, 400));
        assert_eq!((reverse.src_identity, reverse.dst_identity), (400, 300));
        assert_eq!((forward.src_shard, forward.dst_shard), (reverse.dst_shard, reverse.src_shard));
        assert_eq!((forward.dst_mac, reverse.dst_mac), (TUNNEL_DST_MAC, ENDPOINT.mac));
        assert_eq!((forward.flags, reverse.flags), (0, flow_flags::REPLY));
    }

    #[test]
    fn an_entry_is_for_its_source_only() {
        let Halves { forward, reverse } = to_node();
        assert!(comes_from(&forward, SourceKind::Endpoint, 7));
        assert!(!comes_from(&forward, SourceKind::Endpoint, 8));
        assert!(!comes_from(&forward, SourceKind::Node, 7));
        assert!(comes_from(&reverse, SourceKind::Node, 4));
    }

    #[test]
    fn another_epoch_ends_an_entry() {
        let forward = to_node().forward;
        assert!(is_current(&forward, 1, 2));
        assert!(!is_current(&forward, 1, 3));
        assert!(!is_current(&forward, 2, 2));
        assert!(is_current(&FlowEntry { epoch: 1, ..forward }, u32::MAX, 2));
    }

    #[test]
    fn a_known_flow_goes_on() {
        let old = FlowEntry { packets: 9, bytes: 900, tcp_flags: 0x12, created_ns: 5, ..to_node().forward };
        let mut new = to_node();
        assert!(carry_over(&mut new, Some(&old), None, false));
        assert_eq!((new.forward.packets, new.forward.bytes, new.forward.created_ns), (9, 900, 5));
        assert_eq!(new.reverse, to_node().reverse);
    }

    #[test]
    fn a_masqueraded_flow_keeps_its_new_translation_and_its_old_counts() {
        let key = FlowKey {
            src: [10, 0, 1, 5],
            dst: [198, 51, 100, 9],
            src_port_be: [3, 232],
            dst_port_be: [0, 80],
            protocol: 6,
            pad: [0; 3],
        };
        let mut old = to_node();
        old.masquerade(&key, [192, 0, 2, 1], [240, 0]);
        let mut new = to_node();
        new.masquerade(&key, [192, 0, 2, 2], [240, 1]);
        old.forward.packets = 9;
        assert!(carry_over(&mut new, Some(&old.forward), Some(&old.reverse), false));
        assert_eq!(new.forward.packets, 9);
        assert_eq!(new.forward.rewritten(&key).src, [192, 0, 2, 2]);
        let back_key = new.forward.reverse_key(&key);
        assert_eq!(new.reverse.reverse_key(&back_key), key);
        assert_eq!(new.reverse.flags, flow_flags::REPLY | flow_flags::REWRITE_DST);

        let mut plain = to_node();
        assert!(carry_over(&mut plain, Some(&old.forward), None, false));
        assert_eq!(plain.forward.flags, 0, "what is no longer masqueraded is not rewritten");
    }

    #[test]
    fn a_flow_of_a_service_is_known_by_its_frontend_and_answered_by_its_backend() {
        let key = FlowKey {
            src: [10, 0, 1, 5],
            dst: [10, 201, 0, 1],
            src_port_be: [3, 232],
            dst_port_be: [0, 80],
            protocol: 6,
            pad: [0; 3],
        };
        let check = |halves: Halves, source: (V4, [u8; 2])| {
            let out = halves.forward.rewritten(&key);
            assert_eq!((out.dst, out.dst_port_be, halves.forward.backend), ([10, 0, 2, 7], [31, 144], 9));
            assert_eq!((out.src, out.src_port_be), source);
            let back_key = halves.forward.reverse_key(&key);
            assert_eq!(halves.reverse.reverse_key(&back_key), key);
            assert_eq!(halves.reverse.backend, 9);
        };
        let (frontend, place) = ((key.dst, key.dst_port_be), ([10, 0, 2, 7], [31, 144]));
        let mut plain = to_node();
        plain.serve(9, frontend, place);
        check(plain, (key.src, key.src_port_be));
        // With another source as well, in either order.
        let mut first = to_node();
        first.replace_source(&key, [10, 0, 1, 1], [240, 0]);
        first.serve(9, frontend, place);
        check(first, ([10, 0, 1, 1], [240, 0]));
        plain.replace_source(&key, [10, 0, 1, 1], [240, 0]);
        assert_eq!(plain, first);
    }

    #[test]
    fn a_half_that_is_left_says_which_direction_was_first() {
        let mut new = to_node();
        let first = FlowEntry { flags: 0, packets: 3, ..to_node().reverse };
        assert!(carry_over(&mut new, None, Some(&first), false));
        assert_eq!((new.forward.flags, new.reverse.flags), (flow_flags::REPLY, 0));
        assert_eq!((new.forward.packets, new.reverse.packets), (0, 3));
    }

    #[test]
    fn nothing_known_or_ended_is_new() {
        let fresh = to_node();
        let mut new = fresh;
        assert!(!carry_over(&mut new, None, None, false));
        let ended = FlowEntry { flags: flow_flags::ENDED, packets: 9, ..fresh.forward };
        assert!(!carry_over(&mut new, Some(&ended), None, true));
        assert_eq!(new, fresh);
        assert!(carry_over(&mut new, Some(&ended), None, false), "a late packet belongs to the ended flow");
        assert_eq!(new.forward.packets, 9);
    }
}
