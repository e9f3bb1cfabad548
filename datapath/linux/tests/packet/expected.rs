//! The effects that a test expects of one run of a program, and the flow entries in them.

use std::collections::BTreeMap;

use datapath_abi::{DropReason, Event, EventKind, FlowEntry, FlowKey, V4, epoch_shard_v4, flow_flags};

use crate::{
    frame::Frame,
    kernel::{Packet, TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, Tunnel},
    world::{HERE, Peer, epoch_of, mapped},
};

/// A row of the flow table.
pub type Entry = (FlowKey<V4>, FlowEntry);

/// Counter slot of forwarded packets, in place of a drop reason.
pub const FORWARDED: u8 = 0;
/// Counter slot of events that the ring did not take.
pub const LOST_EVENTS: u8 = 255;

/// The expected effects. `check` adds what the program implies: the direction of counters and events.
pub struct Expected {
    pub verdict: u32,
    pub bytes: Vec<u8>,
    /// Reason and bytes of the one counter that increments.
    pub counted: Option<(u8, u64)>,
    pub flows: BTreeMap<FlowKey<V4>, Option<FlowEntry>>,
    pub events: Vec<Event>,
    /// The packet comes out of the tunnel, from this sender.
    pub tunnel: Option<Tunnel>,
}

impl Expected {
    fn new(verdict: u32, bytes: Vec<u8>, counted: Option<u8>) -> Self {
        let counted = counted.map(|reason| (reason, bytes.len() as u64));
        Self { verdict, bytes, counted, flows: BTreeMap::new(), events: vec![], tunnel: None }
    }

    /// The packet leaves by another device as `out`.
    pub fn redirected(out: &(impl Packet + ?Sized)) -> Self {
        Self::new(TC_ACT_REDIRECT, out.to_bytes(), Some(FORWARDED))
    }

    /// The packet goes on as `out`: from an endpoint to the stack, or from the stack to an endpoint.
    pub fn passed(out: &(impl Packet + ?Sized)) -> Self {
        Self::new(TC_ACT_OK, out.to_bytes(), Some(FORWARDED))
    }

    /// The packet is none of ours: later programs and the stack decide, nothing is counted.
    pub fn unspec(out: &(impl Packet + ?Sized)) -> Self {
        Self::new(TC_ACT_UNSPEC, out.to_bytes(), None)
    }

    /// The packet is dropped: counted and reported, and nothing else.
    pub fn dropped(frame: &Frame, reason: DropReason) -> Self {
        Self::dropped_unreported(frame, reason).event(Event {
            packets: 1,
            bytes: frame.len(),
            reason: reason as u8,
            ..event(frame, EventKind::Drop)
        })
    }

    /// As [`Self::dropped`], and the sender gets `answer`, an ICMP error or a TCP reset.
    pub fn rejected(frame: &Frame, answer: &Frame, reason: DropReason) -> Self {
        Self { verdict: TC_ACT_REDIRECT, bytes: answer.to_bytes(), ..Self::dropped(frame, reason) }
    }

    /// As [`Self::dropped`], for a frame without IPv4.
    pub fn dropped_arp(packet: &[u8], reason: DropReason) -> Self {
        Self::dropped_unreported(packet, reason).event(Event {
            kind: EventKind::Drop as u8,
            packets: 1,
            bytes: packet.len() as u64,
            reason: reason as u8,
            src: mapped([0; 4]),
            dst: mapped([0; 4]),
            ifindex: HERE,
            ..Event::default()
        })
    }

    /// The packet is dropped and counted, without an event.
    pub fn dropped_unreported(packet: &(impl Packet + ?Sized), reason: DropReason) -> Self {
        Self::new(TC_ACT_SHOT, packet.to_bytes(), Some(reason as u8))
    }

    /// The dropped frame was damaged before it was sent.
    pub fn sent_as(self, bytes: Vec<u8>) -> Self {
        Self { bytes, ..self }
    }

    /// The packet comes out of the tunnel, and its events name the sending node.
    pub fn tunnel(self, tunnel: Tunnel) -> Self {
        Self { tunnel: Some(tunnel), ..self }
    }

    /// The drop comes before any header is read.
    pub fn without_addresses(mut self) -> Self {
        for event in &mut self.events {
            (event.src, event.dst) = (mapped([0; 4]), mapped([0; 4]));
            (event.protocol, event.family) = (0, 0);
        }
        self.without_ports()
    }

    /// The drop comes before the layer 4 header is read.
    pub fn without_ports(mut self) -> Self {
        for event in &mut self.events {
            (event.src_port_be, event.dst_port_be, event.tcp_flags) = ([0; 2], [0; 2], 0);
        }
        self
    }

    /// The identities that the events name.
    pub fn identities(mut self, src: u32, dst: u32) -> Self {
        for event in &mut self.events {
            (event.src_identity, event.dst_identity) = (src, dst);
        }
        self
    }

    /// `frame` opens a flow between two peers, without NAT.
    pub fn new_flow(self, frame: &Frame, from: &Peer, to: &Peer) -> Self {
        self.opens(frame, pair(frame, from, to))
    }

    /// `frame` opens a flow: both entries are written, and an event reports the flow.
    pub fn opens(self, frame: &Frame, [original, reply]: [Entry; 2]) -> Self {
        let new = Event {
            packets: 1,
            bytes: frame.len(),
            src_identity: original.1.src_identity,
            dst_identity: original.1.dst_identity,
            action: original.1.action,
            ..event(frame, EventKind::FlowNew)
        };
        self.entry(original).entry(reply).event(new)
    }

    /// This entry is written.
    pub fn entry(mut self, (key, entry): Entry) -> Self {
        self.flows.insert(key, Some(entry));
        self
    }

    /// This entry is removed.
    pub fn removed(mut self, key: FlowKey<V4>) -> Self {
        self.flows.insert(key, None);
        self
    }

    /// This event is reported, after those expected so far.
    pub fn event(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }
}

/// The two entries after the first packet of a flow without NAT, times left out: original direction, then reply.
pub fn pair(frame: &Frame, from: &Peer, to: &Peer) -> [Entry; 2] {
    let key = frame.key();
    let original =
        FlowEntry { packets: 1, bytes: frame.len(), tcp_flags: frame.tcp_flags(), ..direction(from, to) };
    let reply = FlowEntry { flags: flow_flags::REPLY, ..direction(to, from) };
    [(key, original), (key.reverse(), reply)]
}

fn direction(from: &Peer, to: &Peer) -> FlowEntry {
    FlowEntry {
        epoch: epoch_of(from.address) + epoch_of(to.address),
        source_kind: from.source.0 as u8,
        source: from.source.1,
        action: to.action.0 as u8,
        target: to.action.1,
        src_identity: from.identity,
        dst_identity: to.identity,
        src_shard: epoch_shard_v4(from.address) as u16,
        dst_shard: epoch_shard_v4(to.address) as u16,
        dst_mac: to.dst_mac,
        src_mac: to.src_mac,
        ..FlowEntry::default()
    }
}

/// The entry after `frame` has used it.
pub fn used_by(frame: &Frame, (key, entry): Entry) -> Entry {
    let counted = FlowEntry {
        packets: entry.packets + 1,
        bytes: entry.bytes + frame.len(),
        tcp_flags: entry.tcp_flags | frame.tcp_flags(),
        ..entry
    };
    (key, counted)
}

/// The entry after it was decided again, one epoch later.
pub fn next_epoch((key, entry): Entry) -> Entry {
    (key, FlowEntry { epoch: entry.epoch + 1, ..entry })
}

/// The entry of one epoch ago.
pub fn previous_epoch((key, entry): Entry) -> Entry {
    (key, FlowEntry { epoch: entry.epoch - 1, ..entry })
}

/// The fields of an event that the packet alone determines.
pub fn event(frame: &Frame, kind: EventKind) -> Event {
    let key = frame.key();
    Event {
        kind: kind as u8,
        src: mapped(key.src),
        dst: mapped(key.dst),
        src_port_be: key.src_port_be,
        dst_port_be: key.dst_port_be,
        protocol: key.protocol,
        family: if frame.is_ipv4() { 4 } else { 0 },
        tcp_flags: frame.tcp_flags(),
        ifindex: HERE,
        ..Event::default()
    }
}
