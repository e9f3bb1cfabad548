//! `check()`: runs a program on a packet and compares all that it did with all that it should have done.

use std::collections::BTreeMap;

use datapath_abi::{
    Direction, DropReason, Event, EventKind, FlowEntry, FlowKey, V4, V6, counter_slot, epoch_shard_v4,
    flow_flags,
};
use datapath_linux::object::Program;

use crate::{
    frame::Frame,
    kernel::{Kernel, Tunnel, kernel_or_skip},
    world::{self, HERE, Peer, epoch_of},
};

/// What the program tells the kernel (`linux/pkt_cls.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass = 0,
    Drop = 2,
    Redirect = 7,
    /// Left to others, and not counted (`TC_ACT_UNSPEC`).
    Leave = -1,
}

/// All that a run did.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: u32,
    bytes: Vec<u8>,
    /// Entries that are other than before, `None` where one is gone.
    flows: BTreeMap<FlowKey<V4>, Option<FlowEntry>>,
    /// What was added: packets and bytes, by slot.
    counters: BTreeMap<u32, (u64, u64)>,
    events: Vec<Event>,
}

/// All that a run should do.
pub struct Expected {
    outcome: Outcome,
    direction: Direction,
    origin: Option<Tunnel>,
}

/// A furnished kernel, or the end of the test with the reason printed.
#[macro_export]
macro_rules! furnished {
    () => {
        match $crate::check::furnished() {
            Some(kernel) => kernel,
            None => return,
        }
    };
}

pub fn furnished() -> Option<Kernel> {
    let mut kernel = kernel_or_skip()?;
    world::furnish(&mut kernel);
    Some(kernel)
}

pub fn direction_of(program: Program) -> Direction {
    match program {
        Program::FromEndpoint | Program::FromHost | Program::ToNetdev => Direction::Egress,
        Program::ToEndpoint | Program::FromOverlay | Program::FromNetdev => Direction::Ingress,
    }
}

/// Runs the program and asserts that exactly what is expected changed: no other byte, entry, counter, event.
#[track_caller]
pub fn check(kernel: &mut Kernel, program: Program, packet: &[u8], expected: Expected) {
    let before = kernel.snapshot();
    let ran = kernel.run(program, packet, expected.origin);
    let after = kernel.snapshot();

    assert_eq!(before.written, after.written, "programs do not write what user space owns");
    let mut flows = BTreeMap::new();
    for key in before.flows.keys().chain(after.flows.keys()) {
        if before.flows.get(key) != after.flows.get(key) {
            flows.insert(*key, after.flows.get(key).copied());
        }
    }
    let mut counters = BTreeMap::new();
    for (slot, (packets, bytes)) in after.counters {
        let (old_packets, old_bytes) = before.counters.get(&slot).copied().unwrap_or((0, 0));
        if (packets, bytes) != (old_packets, old_bytes) {
            counters.insert(slot, (packets - old_packets, bytes - old_bytes));
        }
    }
    let outcome = Outcome { code: ran.code, bytes: ran.bytes, flows, counters, events: kernel.events() };
    assert_eq!(outcome, expected.outcome, "\n left: what happened\nright: what should have");
}

impl Expected {
    /// The packet goes on with these bytes.
    pub fn forwarded(verdict: Verdict, out: Vec<u8>, direction: Direction) -> Self {
        let counters = [(counter_slot(0, direction), (1, out.len() as u64))].into();
        let outcome =
            Outcome { code: verdict as u32, bytes: out, flows: BTreeMap::new(), counters, events: vec![] };
        Self { outcome, direction, origin: None }
    }

    /// The program leaves the packet alone: nothing at all happens.
    pub fn left(packet: &[u8], direction: Direction) -> Self {
        let mut expected = Self::forwarded(Verdict::Leave, packet.to_vec(), direction);
        expected.outcome.counters = BTreeMap::new();
        expected
    }

    /// The packet goes nowhere: counted and reported, and nothing else.
    pub fn dropped(frame: &Frame, reason: DropReason, direction: Direction) -> Self {
        let mut expected = Self::counted(&frame.bytes(), reason, direction);
        expected.outcome.events.push(Event {
            packets: 1,
            bytes: frame.len(),
            reason: reason as u8,
            action: 0,
            ..event(frame, EventKind::Drop, direction)
        });
        expected
    }

    /// As [`Self::dropped`], and the sender is told by an ICMP error in the packet's place.
    pub fn refused(frame: &Frame, error: &Frame, reason: DropReason, direction: Direction) -> Self {
        let mut expected = Self::dropped(frame, reason, direction);
        expected.outcome.code = Verdict::Redirect as u32;
        expected.outcome.bytes = error.bytes();
        expected
    }

    /// As [`Self::dropped`], of a frame without IPv4 in it.
    pub fn dropped_frame(packet: &[u8], reason: DropReason, direction: Direction) -> Self {
        let mut expected = Self::counted(packet, reason, direction);
        expected.outcome.events.push(Event {
            kind: EventKind::Drop as u8,
            packets: 1,
            bytes: packet.len() as u64,
            reason: reason as u8,
            src: mapped([0; 4]),
            dst: mapped([0; 4]),
            ifindex: HERE,
            direction: direction as u8,
            ..Event::default()
        });
        expected
    }

    /// The frame was damaged before it was sent.
    pub fn sent_as(mut self, packet: Vec<u8>) -> Self {
        self.outcome.bytes = packet;
        self
    }

    /// The packet goes nowhere, counted and not reported.
    pub fn counted(packet: &[u8], reason: DropReason, direction: Direction) -> Self {
        let mut expected = Self::forwarded(Verdict::Drop, packet.to_vec(), direction);
        expected.outcome.counters =
            [(counter_slot(reason as u8, direction), (1, packet.len() as u64))].into();
        expected
    }

    /// It came through the tunnel, and its events say from where.
    pub fn origin(mut self, tunnel: Option<Tunnel>) -> Self {
        self.origin = tunnel;
        if let Some(tunnel) = tunnel {
            for event in &mut self.outcome.events {
                event.outer_src_v4 = tunnel.underlay;
            }
        }
        self
    }

    /// A drop of which nothing but the frame was looked at.
    pub fn without_addresses(mut self) -> Self {
        for event in &mut self.outcome.events {
            (event.src, event.dst) = (mapped([0; 4]), mapped([0; 4]));
            (event.src_port_be, event.dst_port_be) = ([0; 2], [0; 2]);
            (event.protocol, event.family, event.tcp_flags) = (0, 0, 0);
        }
        self
    }

    /// A drop after whose addresses nothing more could be read.
    pub fn without_ports(mut self) -> Self {
        for event in &mut self.outcome.events {
            (event.src_port_be, event.dst_port_be, event.tcp_flags) = ([0; 2], [0; 2], 0);
        }
        self
    }

    /// A drop after these identities were looked up.
    pub fn identities(mut self, src: u32, dst: u32) -> Self {
        for event in &mut self.outcome.events {
            (event.src_identity, event.dst_identity) = (src, dst);
        }
        self
    }

    /// The flow of `frame` was not known: both entries are made, and it is reported.
    pub fn new_flow(self, frame: &Frame, from: &Peer, to: &Peer) -> Self {
        let [forward, reverse] = pair(frame, from, to);
        let direction = self.direction;
        self.flow(forward).flow(reverse).event(Event {
            packets: 1,
            bytes: frame.len(),
            src_identity: from.identity,
            dst_identity: to.identity,
            action: to.action.0 as u8,
            ..event(frame, EventKind::FlowNew, direction)
        })
    }

    /// This entry is other than before.
    pub fn flow(mut self, (key, entry): (FlowKey<V4>, FlowEntry)) -> Self {
        self.outcome.flows.insert(key, Some(entry));
        self
    }

    /// This entry goes.
    pub fn without_flow(mut self, key: FlowKey<V4>) -> Self {
        self.outcome.flows.insert(key, None);
        self
    }

    /// This is reported, after what was expected so far.
    pub fn event(mut self, event: Event) -> Self {
        self.outcome.events.push(event);
        self
    }
}

/// The two entries that the first packet of a flow makes, times left out.
pub fn pair(frame: &Frame, from: &Peer, to: &Peer) -> [(FlowKey<V4>, FlowEntry); 2] {
    let key = frame.key();
    let forward =
        FlowEntry { packets: 1, bytes: frame.len(), tcp_flags: frame.tcp_flags(), ..half(from, to) };
    let reverse = FlowEntry { flags: flow_flags::REPLY, ..half(to, from) };
    [(key, forward), (key.reverse(), reverse)]
}

fn half(from: &Peer, to: &Peer) -> FlowEntry {
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

/// The entry after `frame` as well.
pub fn and_packet((key, entry): (FlowKey<V4>, FlowEntry), frame: &Frame) -> (FlowKey<V4>, FlowEntry) {
    let counted = FlowEntry {
        packets: entry.packets + 1,
        bytes: entry.bytes + frame.len(),
        tcp_flags: entry.tcp_flags | frame.tcp_flags(),
        ..entry
    };
    (key, counted)
}

/// What an event tells of its packet.
pub fn event(frame: &Frame, kind: EventKind, direction: Direction) -> Event {
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
        direction: direction as u8,
        ..Event::default()
    }
}

/// `CLOCK_MONOTONIC_COARSE`, as the programs read it.
pub fn coarse_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Until the clock of the programs has passed a boundary of the periods in which halves look for each other.
pub fn wait_for_the_next_second() {
    let period = || coarse_ns() >> 30;
    let now = period();
    while period() == now {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn mapped(address: V4) -> V6 {
    let mut bytes = [0; 16];
    bytes[10..12].fill(0xff);
    bytes[12..].copy_from_slice(&address);
    bytes
}
