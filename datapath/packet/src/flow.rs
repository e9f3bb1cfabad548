//! What is decided about a flow, as the two entries of the flow table, and whether an entry still holds.

use datapath_abi::{
    EndpointEntry, FlowAction, FlowEntry, FlowKey, MacBytes, PolicyVerdict, SourceKind, TUNNEL_DST_MAC,
    TUNNEL_SRC_MAC, V4, flow_flags,
};

/// Where one end of a flow is, seen from this node. A location answers two questions about the end: what is done with
/// packets to it, and where packets from it must come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// The local endpoint behind this interface.
    Endpoint(u32),
    /// Behind the node with this index, through the tunnel.
    Node(u32),
    /// This node itself.
    Host,
    /// Wherever this node's routing leads.
    Stack,
    /// Beyond the underlay interface with this index, past the stack.
    Underlay(u32),
}

impl Location {
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

    /// Where packets from it come from: kind and index. What the stack has routed comes as the stack's own.
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

/// One end of a flow: plain numbers, as the flow's entries need them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    /// Identity of whoever is there.
    pub identity: u32,
    /// Interface or node index of packets to it.
    pub target: u32,
    /// Interface or node index that packets from it come by.
    pub source: u32,
    /// [`FlowAction`] of packets to it.
    pub action: u8,
    /// [`SourceKind`] of packets from it.
    pub source_kind: u8,
    /// Ethernet destination of packets to it.
    pub dst_mac: MacBytes,
    /// Ethernet source of packets to it.
    pub src_mac: MacBytes,
}

impl FlowEnd {
    /// A local endpoint.
    #[inline(always)]
    pub const fn endpoint(endpoint: &EndpointEntry) -> Self {
        Self::new(Location::Endpoint(endpoint.ifindex), endpoint.identity, endpoint.mac, endpoint.host_mac)
    }

    /// Whoever is behind the node with index `index`.
    #[inline(always)]
    pub const fn node(index: u32, identity: u32) -> Self {
        Self::new(Location::Node(index), identity, TUNNEL_DST_MAC, TUNNEL_SRC_MAC)
    }

    /// Reached by the node's stack ([`Location::Host`], [`Location::Stack`]) or past it ([`Location::Underlay`], whose
    /// Ethernet addresses the kernel finds); `host_mac` is `warren_host`'s.
    #[inline(always)]
    pub const fn stack(location: Location, identity: u32, host_mac: MacBytes) -> Self {
        Self::new(location, identity, host_mac, TUNNEL_SRC_MAC)
    }

    #[inline(always)]
    const fn new(location: Location, identity: u32, dst_mac: MacBytes, src_mac: MacBytes) -> Self {
        let ((action, target), (source_kind, source)) = (location.action(), location.source());
        let (action, source_kind) = (action as u8, source_kind as u8);
        Self { identity, target, source, action, source_kind, dst_mac, src_mac }
    }

    /// Moves the end elsewhere in one respect: packets to it go there. Packets from it come as before.
    #[inline(always)]
    pub const fn send_to(&mut self, location: Location) {
        let (action, target) = location.action();
        (self.action, self.target) = (action as u8, target);
    }

    /// Moves the end elsewhere in the other respect: packets from it come from there.
    #[inline(always)]
    pub const fn receive_from(&mut self, location: Location) {
        let (kind, source) = location.source();
        (self.source_kind, self.source) = (kind as u8, source);
    }
}

/// The epoch shards of a flow's two addresses and their epochs, read before the maps that the decision is made from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochSnapshot {
    /// Epoch of the source's shard.
    pub src_epoch: u32,
    /// Epoch of the destination's shard.
    pub dst_epoch: u32,
    /// Shard of the source.
    pub src_shard: u16,
    /// Shard of the destination.
    pub dst_shard: u16,
}

impl EpochSnapshot {
    /// The same, of the opposite direction.
    #[inline(always)]
    #[must_use]
    pub const fn reverse(&self) -> Self {
        Self {
            src_epoch: self.dst_epoch,
            dst_epoch: self.src_epoch,
            src_shard: self.dst_shard,
            dst_shard: self.src_shard,
        }
    }
}

/// Both entries of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowPair {
    /// Of the direction of the flow's first packet.
    pub original: FlowEntry,
    /// Of the opposite direction.
    pub reply: FlowEntry,
}

impl FlowPair {
    /// Makes the pair that of a new flow whose original direction goes from one end to the other, without packets yet. (Written
    /// in place: a pair that is returned goes over the program's stack.)
    #[inline(always)]
    pub fn set(
        &mut self,
        from: &FlowEnd,
        to: &FlowEnd,
        epochs: &EpochSnapshot,
        verdict: PolicyVerdict,
        now_ns: u64,
    ) {
        set_entry(&mut self.original, from, to, epochs, now_ns);
        self.original.flags = verdict.flags();
        set_entry(&mut self.reply, to, from, &epochs.reverse(), now_ns);
        self.reply.flags = verdict.flags() | flow_flags::REPLY;
    }

    /// Source NAT: packets of the original direction, whose key is `key`, get another source. Replies come to that
    /// source and get back the old one as their destination.
    #[inline(always)]
    pub fn set_snat(&mut self, key: &FlowKey<V4>, address: V4, port_be: [u8; 2]) {
        self.original.flags |= flow_flags::REWRITE_SRC;
        self.original.rewrite_src = address;
        self.original.rewrite_src_port_be = port_be;
        self.reply.flags |= flow_flags::REWRITE_DST;
        self.reply.rewrite_dst = key.src;
        self.reply.rewrite_dst_port_be = key.src_port_be;
    }

    /// Destination NAT: packets of the original direction, which go to a service's frontend, get the place of one of its
    /// backends as destination. Replies come from the backend and get the frontend as their source.
    #[inline(always)]
    pub fn set_dnat(&mut self, backend: u32, frontend: (V4, [u8; 2]), place: (V4, [u8; 2])) {
        self.original.flags |= flow_flags::REWRITE_DST;
        (self.original.rewrite_dst, self.original.rewrite_dst_port_be) = place;
        self.original.backend = backend;
        self.reply.flags |= flow_flags::REWRITE_SRC;
        (self.reply.rewrite_src, self.reply.rewrite_src_port_be) = frontend;
        self.reply.backend = backend;
    }

    /// Direct server return: packets of the original direction go untranslated to the backend's node, and no reply comes
    /// back by this node. The entry remembers where the backend is.
    #[inline(always)]
    pub fn set_dsr_backend(&mut self, backend: u32, place: (V4, [u8; 2])) {
        (self.original.rewrite_dst, self.original.rewrite_dst_port_be) = place;
        self.original.backend = backend;
        self.reply.backend = backend;
    }
}

/// Bits of [`FlowEntry::flags`] that a decision sets. The others are the flow's history.
const DECIDED: u8 = flow_flags::REWRITE_SRC | flow_flags::REWRITE_DST | flow_flags::POLICY_VERDICT;

/// One direction, but for its flags.
#[inline(always)]
fn set_entry(entry: &mut FlowEntry, from: &FlowEnd, to: &FlowEnd, epochs: &EpochSnapshot, now_ns: u64) {
    *entry = FlowEntry {
        created_ns: now_ns,
        last_seen_ns: now_ns,
        epoch: epochs.src_epoch.wrapping_add(epochs.dst_epoch),
        source: from.source,
        target: to.target,
        src_identity: from.identity,
        dst_identity: to.identity,
        src_shard: epochs.src_shard,
        dst_shard: epochs.dst_shard,
        action: to.action,
        source_kind: from.source_kind,
        dst_mac: to.dst_mac,
        src_mac: to.src_mac,
        ..FlowEntry::default()
    };
}

/// Makes a new decision about a known flow its continuation: counts, times, TCP flags and which direction was original
/// stay, also when one entry is missing. The first of two entries is that of the packet's own direction. `opens`: the packet
/// begins a connection, so that what is left of an ended flow is not continued.
///
/// Returns whether there was something to continue; `false`: the flow is new.
#[inline(always)]
pub fn carry_over(
    (own, other): (&mut FlowEntry, &mut FlowEntry),
    (old_own, old_other): (Option<&FlowEntry>, Option<&FlowEntry>),
    opens: bool,
) -> bool {
    let flags = match (old_own, old_other) {
        (Some(old), _) => old.flags,
        (None, Some(old)) => old.flags ^ flow_flags::REPLY,
        (None, None) => return false,
    };
    if opens && flags & flow_flags::ENDED != 0 {
        return false;
    }
    own.flags = own.flags & DECIDED | flags & !DECIDED;
    other.flags = other.flags & DECIDED | (flags ^ flow_flags::REPLY) & !DECIDED;
    if let Some(old) = old_own {
        continue_entry(own, old);
    }
    if let Some(old) = old_other {
        continue_entry(other, old);
    }
    true
}

#[inline(always)]
fn continue_entry(new: &mut FlowEntry, old: &FlowEntry) {
    new.packets = old.packets;
    new.bytes = old.bytes;
    new.created_ns = old.created_ns;
    new.last_seen_ns = old.last_seen_ns;
    new.tcp_flags = old.tcp_flags;
}

/// Whether nothing that the decision depends on has changed since. The epochs are the present ones of the entry's shards.
#[inline(always)]
pub fn is_current(entry: &FlowEntry, src_epoch: u32, dst_epoch: u32) -> bool {
    entry.epoch == src_epoch.wrapping_add(dst_epoch)
}

/// Whether the entry is for packets from there: this comparison spares a known flow the look-ups of the source check.
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

    const EPOCHS: EpochSnapshot = EpochSnapshot { src_epoch: 1, dst_epoch: 2, src_shard: 11, dst_shard: 12 };

    fn between(to: &FlowEnd) -> FlowPair {
        let mut pair = FlowPair::default();
        pair.set(&FlowEnd::endpoint(&ENDPOINT), to, &EPOCHS, PolicyVerdict::Allow, 1_000);
        pair
    }

    fn to_node() -> FlowPair {
        between(&FlowEnd::node(4, 400))
    }

    /// The original direction's packet continues the flow.
    fn continues(new: &mut FlowPair, old: (Option<&FlowEntry>, Option<&FlowEntry>), opens: bool) -> bool {
        carry_over((&mut new.original, &mut new.reply), old, opens)
    }

    #[test]
    fn flow_pair_entries_mirror_each_other() {
        let FlowPair { original, reply } = to_node();
        assert_eq!((original.action, original.target), (FlowAction::Tunnel as u8, 4));
        assert_eq!((original.source_kind, original.source), (SourceKind::Endpoint as u8, 7));
        assert_eq!((reply.action, reply.target), (FlowAction::Local as u8, 7));
        assert_eq!((reply.source_kind, reply.source), (SourceKind::Node as u8, 4));
        assert_eq!((original.src_identity, original.dst_identity), (300, 400));
        assert_eq!((reply.src_identity, reply.dst_identity), (400, 300));
        assert_eq!((original.src_shard, original.dst_shard), (reply.dst_shard, reply.src_shard));
        assert_eq!((original.dst_mac, reply.dst_mac), (TUNNEL_DST_MAC, ENDPOINT.mac));
        assert_eq!((original.flags, reply.flags), (0, flow_flags::REPLY));
    }

    #[test]
    fn flow_entry_is_for_its_source_only() {
        let FlowPair { original, reply } = to_node();
        assert!(comes_from(&original, SourceKind::Endpoint, 7));
        assert!(!comes_from(&original, SourceKind::Endpoint, 8));
        assert!(!comes_from(&original, SourceKind::Node, 7));
        assert!(comes_from(&reply, SourceKind::Node, 4));
    }

    #[test]
    fn flow_entry_ends_with_another_epoch() {
        let original = to_node().original;
        assert!(is_current(&original, 1, 2));
        assert!(!is_current(&original, 1, 3));
        assert!(!is_current(&original, 2, 2));
        assert!(is_current(&FlowEntry { epoch: 1, ..original }, u32::MAX, 2));
    }

    #[test]
    fn carry_over_continues_a_known_flow() {
        let old = FlowEntry { packets: 9, bytes: 900, tcp_flags: 0x12, created_ns: 5, ..to_node().original };
        let mut new = to_node();
        assert!(continues(&mut new, (Some(&old), None), false));
        assert_eq!((new.original.packets, new.original.bytes, new.original.created_ns), (9, 900, 5));
        assert_eq!(new.reply, to_node().reply);
    }

    #[test]
    fn carry_over_keeps_the_new_translation_and_the_old_counts() {
        let key = FlowKey {
            src: [10, 0, 1, 5],
            dst: [198, 51, 100, 9],
            src_port_be: [3, 232],
            dst_port_be: [0, 80],
            protocol: 6,
            pad: [0; 3],
        };
        let mut old = to_node();
        old.set_snat(&key, [192, 0, 2, 1], [240, 0]);
        let mut new = to_node();
        new.set_snat(&key, [192, 0, 2, 2], [240, 1]);
        old.original.packets = 9;
        assert!(continues(&mut new, (Some(&old.original), Some(&old.reply)), false));
        assert_eq!(new.original.packets, 9);
        assert_eq!(new.original.rewritten(&key).src, [192, 0, 2, 2]);
        let back_key = new.original.reverse_key(&key);
        assert_eq!(new.reply.reverse_key(&back_key), key);
        assert_eq!(new.reply.flags, flow_flags::REPLY | flow_flags::REWRITE_DST);

        let mut plain = to_node();
        assert!(continues(&mut plain, (Some(&old.original), None), false));
        assert_eq!(plain.original.flags, 0, "what is no longer masqueraded is not rewritten");
    }

    #[test]
    fn service_flow_is_known_by_its_frontend_and_answered_by_its_backend() {
        let key = FlowKey {
            src: [10, 0, 1, 5],
            dst: [10, 201, 0, 1],
            src_port_be: [3, 232],
            dst_port_be: [0, 80],
            protocol: 6,
            pad: [0; 3],
        };
        let check = |pair: FlowPair, source: (V4, [u8; 2])| {
            let out = pair.original.rewritten(&key);
            assert_eq!((out.dst, out.dst_port_be, pair.original.backend), ([10, 0, 2, 7], [31, 144], 9));
            assert_eq!((out.src, out.src_port_be), source);
            let back_key = pair.original.reverse_key(&key);
            assert_eq!(pair.reply.reverse_key(&back_key), key);
            assert_eq!(pair.reply.backend, 9);
        };
        let (frontend, place) = ((key.dst, key.dst_port_be), ([10, 0, 2, 7], [31, 144]));
        let mut plain = to_node();
        plain.set_dnat(9, frontend, place);
        check(plain, (key.src, key.src_port_be));
        // With another source as well, in either order.
        let mut first = to_node();
        first.set_snat(&key, [10, 0, 1, 1], [240, 0]);
        first.set_dnat(9, frontend, place);
        check(first, ([10, 0, 1, 1], [240, 0]));
        plain.set_snat(&key, [10, 0, 1, 1], [240, 0]);
        assert_eq!(plain, first);
    }

    #[test]
    fn carry_over_keeps_the_direction_that_one_entry_remembers() {
        let mut new = to_node();
        let first = FlowEntry { flags: 0, packets: 3, ..to_node().reply };
        assert!(continues(&mut new, (None, Some(&first)), false));
        assert_eq!((new.original.flags, new.reply.flags), (flow_flags::REPLY, 0));
        assert_eq!((new.original.packets, new.reply.packets), (0, 3));
    }

    #[test]
    fn carry_over_finds_unknown_and_ended_flows_new() {
        let fresh = to_node();
        let mut new = fresh;
        assert!(!continues(&mut new, (None, None), false));
        let ended = FlowEntry { flags: flow_flags::ENDED, packets: 9, ..fresh.original };
        assert!(!continues(&mut new, (Some(&ended), None), true));
        assert_eq!(new, fresh);
        assert!(continues(&mut new, (Some(&ended), None), false), "a late packet belongs to the ended flow");
        assert_eq!(new.original.packets, 9);
    }
}
