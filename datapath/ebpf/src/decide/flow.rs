//! The flow table: what is known of a packet's flow. A packet of a known flow costs this one lookup.

use datapath_abi::{EventKind, FlowEntry, FlowKey, V4, flow_flags::ENDED};
use datapath_packet::{TcpState, may_end, opens, tcp_state};

use crate::{
    atomic, clock::now_ns, context::Packet, decide::previous, epoch, maps::FLOWS_V4, parse::icmp, report,
};

/// An entry in the table, for packets like the one that it was looked up for.
#[derive(Clone, Copy)]
pub struct Flow(*mut FlowEntry);

impl Flow {
    /// What the entry says.
    #[inline(always)]
    pub fn entry(&self) -> &FlowEntry {
        // SAFETY: the memory is the table's for ever (preallocated), and every bit pattern is an entry. What is decided never
        // changes in place, but another CPU may evict the entry and give it to another flow; as it was looked up just now, it
        // is the last one that an LRU takes (decision 0003).
        unsafe { &*self.0 }
    }

    /// The entry of a key, whether it still holds or not.
    #[inline(always)]
    pub fn find(key: &FlowKey<V4>) -> Option<Self> {
        FLOWS_V4.get_ptr_mut(key).map(Self)
    }

    /// Counts a packet that was sent on as the entry says, and notes what its TCP flags do to the connection.
    #[inline(always)]
    pub fn touch(&self, packet: &Packet) {
        self.count(packet.bytes(), packet.tcp_flags);
        let entry = self.0;
        // SAFETY: as in `entry`.
        unsafe {
            if may_end(packet.tcp_flags) && (*entry).flags & ENDED == 0 {
                end(packet, &mut *entry, reverse_of(packet, &*entry));
            }
        }
    }

    /// Counts a packet and notes its TCP flags.
    #[inline(always)]
    pub fn count(&self, bytes: u32, tcp_flags: u8) {
        let entry = self.0;
        // SAFETY: as in `entry`. Times and flags are plain writes: CPUs that race write nearly the same.
        unsafe {
            atomic::add(&raw mut (*entry).packets, 1);
            atomic::add(&raw mut (*entry).bytes, u64::from(bytes));
            (*entry).last_seen_ns = now_ns();
            if tcp_flags & !(*entry).tcp_flags != 0 {
                (*entry).tcp_flags |= tcp_flags;
            }
        }
    }
}

/// Looks up the packet's flow. `None`: the flow has to be decided, as there is no entry, or none that holds now for packets
/// from where this one comes from.
#[inline(always)]
pub fn lookup(packet: &mut Packet, comes_from: impl FnOnce(&FlowEntry) -> bool) -> Option<Flow> {
    if packet.is_icmp_error {
        // An error belongs to the flow that it is about. An error about no known flow is a flow of its own.
        let flow = Flow(find_quoted(packet));
        if !flow.0.is_null() && comes_from(flow.entry()) {
            return Some(known(packet, flow));
        }
        packet.reset_decision();
        return None;
    }
    let Some(flow) = Flow::find(&packet.key) else {
        packet.reset_decision();
        packet.previous.is_absent = true;
        return None;
    };
    let entry = flow.entry();
    let is_new = opens(packet.tcp_flags) && has_ended(entry);
    if !is_new && comes_from(entry) && holds(&packet.key, entry) {
        return Some(known(packet, flow));
    }
    packet.reset_decision();
    if !is_new {
        previous::remember(packet, entry);
    }
    None
}

#[inline(always)]
fn known(packet: &mut Packet, flow: Flow) -> Flow {
    packet.src_identity = flow.entry().src_identity;
    packet.dst_identity = flow.entry().dst_identity;
    flow
}

/// The entry of the flow that an error is about, in the direction in which the error goes. Null if there is none that holds.
#[inline(never)]
pub fn find_quoted(packet: &Packet) -> *mut FlowEntry {
    let entry = match icmp::quoted_flow_key(packet) {
        Some(key) => FLOWS_V4.get_ptr_mut(key),
        None => None,
    };
    match entry {
        // SAFETY: as in `Flow::entry`.
        Some(entry) if epoch::is_valid(unsafe { &*entry }) => entry,
        _ => core::ptr::null_mut(),
    }
}

/// Whether the entry's connection has ended. With direct server return only the client is heard.
#[inline(always)]
fn has_ended(entry: &FlowEntry) -> bool {
    let is_heard_in_one_direction = entry.backend != 0 && !entry.is_translated();
    entry.flags & ENDED != 0 || is_heard_in_one_direction && may_end(entry.tcp_flags)
}

/// Whether the entry of a key holds now.
#[inline(always)]
pub fn holds(key: &FlowKey<V4>, entry: &FlowEntry) -> bool {
    epoch::is_valid(entry) && is_paired(key, entry)
}

/// Whether a translated flow still has its other entry. That is looked up once a second: an entry that is left alone would
/// go on sending to an end whose replies nobody knows any more. The lookup also keeps the other entry from being the one
/// that an LRU evicts.
#[inline(always)]
fn is_paired(key: &FlowKey<V4>, entry: &FlowEntry) -> bool {
    /// 2^30 ns are 1.07 s.
    const PERIOD_BITS: u32 = 30;
    if !entry.is_translated() || (now_ns() ^ entry.last_seen_ns) >> PERIOD_BITS == 0 {
        return true;
    }
    let reverse_key = entry.reverse_key(key);
    // SAFETY: as in `Flow::entry`; read at once.
    let reverse = unsafe { FLOWS_V4.get(reverse_key) };
    reverse.is_some_and(|other| other.reverse_key(&reverse_key) == *key)
}

#[inline(always)]
fn reverse_of(packet: &Packet, entry: &FlowEntry) -> Option<&'static mut FlowEntry> {
    let entry = FLOWS_V4.get_ptr_mut(entry.reverse_key(&packet.key))?;
    // SAFETY: as in `Flow::entry`.
    Some(unsafe { &mut *entry })
}

/// Reports the end of a connection, if the flags of both directions say so. Once: two FINs that cross on two CPUs may both
/// find the connection open, or neither; then the collection in user space ends it.
#[inline(always)]
pub fn end(packet: &Packet, entry: &mut FlowEntry, reverse: Option<&mut FlowEntry>) {
    let other_flags = reverse.as_ref().map_or(0, |other| other.tcp_flags);
    if tcp_state(entry.tcp_flags, other_flags) != TcpState::Closed {
        return;
    }
    report::flow(packet, EventKind::FlowEnd, entry, reverse.as_deref());
    entry.flags |= ENDED;
    if let Some(other) = reverse {
        other.flags |= ENDED;
    }
}
