//! The flow table: what is known of a packet's flow, and how a flow becomes known.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_coarse_ns};
use datapath_abi::{DropReason, EventKind, FlowEntry, FlowKey, V4, epoch_shard_v4, flow_flags::ENDED};
use datapath_packet::{Halves, Side, TcpState, carry_over, is_current, may_end, opens, tcp_state};

use crate::{atomic, context::Packet, lookup, maps::FLOWS_V4, nat::rewrite, parse::icmp, report, service};

/// An entry in the table, for packets like the one it was looked up for.
#[derive(Clone, Copy)]
pub struct Flow(*mut FlowEntry);

impl Flow {
    /// What it says.
    #[inline(always)]
    pub fn entry(&self) -> &FlowEntry {
        // SAFETY: the memory is the table's for ever (preallocated), and every bit pattern is an entry. What is
        // decided never changes in place, but another CPU may evict the entry and give it to another flow; as it
        // was looked up just now, it is the last that an LRU takes (decision 0003).
        unsafe { &*self.0 }
    }

    /// What the table says to a key, whether that holds or not.
    #[inline(always)]
    pub fn find(key: &FlowKey<V4>) -> Option<Self> {
        FLOWS_V4.get_ptr_mut(key).map(Self)
    }

    /// Counts a packet that was sent on as the entry says, and notes what its flags do to the connection.
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

    /// Counts a packet, and notes its flags.
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

/// The entry for the packet, if what it says holds now and the packet comes from where it must.
#[inline(always)]
pub fn known(packet: &mut Packet, comes_from: impl FnOnce(&FlowEntry) -> bool) -> Option<Flow> {
    if packet.is_error {
        // An error belongs to the flow that it is about. One about nothing that is known is a flow of its own.
        let flow = Flow(icmp::flow_of(packet));
        if !flow.0.is_null() && comes_from(flow.entry()) {
            packet.src_identity = flow.entry().src_identity;
            packet.dst_identity = flow.entry().dst_identity;
            return Some(flow);
        }
        return None;
    }
    let key = &packet.key;
    let flow = Flow::find(key)?;
    let entry = flow.entry();
    if opens(packet.tcp_flags) && is_over(entry) {
        return None;
    }
    if !(comes_from(entry) && holds(&packet.key, entry)) {
        service::note(packet, entry);
        return None;
    }
    packet.src_identity = entry.src_identity;
    packet.dst_identity = entry.dst_identity;
    Some(flow)
}

/// Whether the entry's connection has ended. Where a backend answers its client itself, only the client is heard.
#[inline(always)]
fn is_over(entry: &FlowEntry) -> bool {
    let is_heard_in_half = entry.backend != 0 && !rewrite::is_rewritten(entry);
    entry.flags & ENDED != 0 || is_heard_in_half && may_end(entry.tcp_flags)
}

/// Whether what the entry of a key says holds now.
#[inline(always)]
pub fn holds(key: &FlowKey<V4>, entry: &FlowEntry) -> bool {
    is_valid(entry) && is_whole(key, entry)
}

/// Whether nothing has changed that the entry depends on.
#[inline(always)]
pub fn is_valid(entry: &FlowEntry) -> bool {
    is_current(entry, lookup::epoch(entry.src_shard), lookup::epoch(entry.dst_shard))
}

/// Whether a translated flow still has its other half. That is looked for once a second: a half that is left alone
/// would go on sending to somebody whose answers nobody knows any more. Looking also keeps the other half from being the
/// one that an LRU evicts.
#[inline(always)]
fn is_whole(key: &FlowKey<V4>, entry: &FlowEntry) -> bool {
    /// 2^30 ns are 1.07 s.
    const PERIOD_BITS: u32 = 30;
    if !rewrite::is_rewritten(entry) || (now_ns() ^ entry.last_seen_ns) >> PERIOD_BITS == 0 {
        return true;
    }
    let reverse_key = entry.reverse_key(key);
    // SAFETY: as in `Flow::entry`; read at once.
    let reverse = unsafe { FLOWS_V4.get(reverse_key) };
    reverse.is_some_and(|half| half.reverse_key(&reverse_key) == *key)
}

/// The shards of a packet's addresses, and their epochs.
#[derive(Clone, Copy)]
pub struct Moment {
    /// Shard of the source.
    pub src_shard: u16,
    /// Shard of the destination.
    pub dst_shard: u16,
    /// Of the source's shard.
    pub src_epoch: u32,
    /// Of the destination's shard.
    pub dst_epoch: u32,
}

/// Begins to decide about a packet's flow.
///
/// Before any map is read that the decision is made from: user space changes maps first and epochs
/// after, so a decision from what was there before a change never outlives it.
#[inline(always)]
pub fn begin(packet: &mut Packet) {
    packet.moment.src_shard = epoch_shard_v4(packet.key.src) as u16;
    packet.moment.src_epoch = lookup::epoch(packet.moment.src_shard);
    go_to(packet, packet.key.dst);
}

/// Takes another destination for the flow. What the epoch of the source is stays as it was read.
#[inline(always)]
pub fn go_to(packet: &mut Packet, dst: V4) {
    packet.moment.dst_shard = epoch_shard_v4(dst) as u16;
    packet.moment.dst_epoch = lookup::epoch(packet.moment.dst_shard);
}

/// Decides about a flow both of whose ends are known. Nothing refuses yet: policy will, here and only here.
#[inline(always)]
pub fn decide(packet: &mut Packet, from: &Side, to: &Side) -> &'static mut Halves {
    packet.src_identity = from.identity;
    packet.dst_identity = to.identity;
    // SAFETY: this CPU's own. Programs do not interrupt one another on a CPU, and each decides once a run.
    let halves = unsafe { &mut *packet.halves() };
    let epoch = packet.moment.src_epoch.wrapping_add(packet.moment.dst_epoch);
    *halves = Halves::between(from, to, epoch, now_ns());
    halves
}

/// Writes a decision that its packet was sent on by into the table: both halves, or none.
///
/// # Errors
/// [`DropReason::FlowTableFull`].
#[inline(never)]
pub fn remember(packet: &Packet, halves: &mut Halves) -> Result<(), DropReason> {
    // By reference: copies would not fit on the stack.
    let (key, reverse_key) = (&packet.key, &halves.forward.reverse_key(&packet.key));
    // SAFETY: as in `Flow::entry`; read before anything is written below.
    let (forward, reverse) = unsafe { (FLOWS_V4.get(key), FLOWS_V4.get(reverse_key)) };
    // The port of a flow with another source was free: nobody may have taken it since. A backend's flow takes none.
    let is_taking = rewrite::is_rewritten(&halves.forward)
        && (halves.forward.backend == 0 || rewrite::is_on_both_sides(&halves.forward))
        && reverse.is_none();
    let is_new = !carry_over(halves, forward, reverse, opens(packet.tcp_flags));

    halves.forward.packets += 1;
    halves.forward.bytes += u64::from(packet.bytes());
    halves.forward.last_seen_ns = now_ns();
    halves.forward.tcp_flags |= packet.tcp_flags;
    if is_new {
        report::flow(packet, EventKind::FlowNew, &halves.forward, None);
    }
    if may_end(packet.tcp_flags) && halves.forward.flags & ENDED == 0 {
        end(packet, &mut halves.forward, Some(&mut halves.reverse));
    }

    let Halves { forward, reverse } = &*halves;
    let only_if_absent = if is_taking { u64::from(BPF_NOEXIST) } else { 0 };
    if FLOWS_V4.insert(reverse_key, reverse, only_if_absent).is_err() {
        return Err(if is_taking { DropReason::MasqueradePorts } else { DropReason::FlowTableFull });
    }
    if FLOWS_V4.insert(key, forward, 0).is_err() {
        // One half alone would be a flow with an end; what cannot be removed is not there.
        let _ = FLOWS_V4.remove(key);
        let _ = FLOWS_V4.remove(reverse_key);
        return Err(DropReason::FlowTableFull);
    }
    Ok(())
}

#[inline(always)]
fn reverse_of(packet: &Packet, entry: &FlowEntry) -> Option<&'static mut FlowEntry> {
    let entry = FLOWS_V4.get_ptr_mut(entry.reverse_key(&packet.key))?;
    // SAFETY: as in `Flow::entry`.
    Some(unsafe { &mut *entry })
}

/// Reports the end of a connection, if the flags of both directions say so. Once: two FINs that cross on two
/// CPUs may both find it open, or neither; then the collection in user space ends it.
#[inline(always)]
fn end(packet: &Packet, entry: &mut FlowEntry, reverse: Option<&mut FlowEntry>) {
    let other_flags = reverse.as_ref().map_or(0, |half| half.tcp_flags);
    if tcp_state(entry.tcp_flags, other_flags) != TcpState::Closed {
        return;
    }
    report::flow(packet, EventKind::FlowEnd, entry, reverse.as_deref());
    entry.flags |= ENDED;
    if let Some(half) = reverse {
        half.flags |= ENDED;
    }
}

/// `CLOCK_MONOTONIC_COARSE`: good to a few milliseconds, and far cheaper than the exact time.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}
