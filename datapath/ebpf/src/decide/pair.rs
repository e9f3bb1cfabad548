//! Both entries of a flow: computed from its ends, and written.

use aya_ebpf::bindings::BPF_NOEXIST;
use datapath_abi::{DropReason, EventKind, FlowEntry, flow_flags::ENDED};
use datapath_packet::{FlowPair, carry_over, may_end, opens};

use crate::{
    clock::now_ns,
    context::Packet,
    decide::{flow, previous::is_plain_reply},
    maps::FLOWS_V4,
    nat::masquerade::NO_PORT,
    report,
    service::affinity,
};

/// Computes both entries from what the steps before have found.
///
/// # Errors
/// [`DropReason::NoTranslation`]: the packet does not reply to the flow that its previous entry named.
/// [`DropReason::InnerSource`]: it comes from elsewhere than from where the flow goes.
#[inline(always)]
pub fn compute(packet: &mut Packet) -> Result<(), DropReason> {
    let pair = packet.pair();
    let (from, to, verdict) = (&packet.from, &packet.to, packet.policy_verdict);
    if is_plain_reply(packet) {
        pair.set(to, from, &packet.epochs.reverse(), verdict, now_ns());
    } else {
        pair.set(from, to, &packet.epochs, verdict, now_ns());
    }
    if packet.snat_port_be != NO_PORT {
        pair.set_snat(&packet.key, packet.snat_address, packet.snat_port_be);
    }
    let mut original_key = packet.key;
    if packet.backend.id != 0 {
        original_key = packet.pre_dnat_key;
        let backend = (packet.backend.address, packet.backend.port_be);
        if packet.is_dsr_wanted {
            pair.set_dsr_backend(packet.backend.id, backend);
        } else {
            let frontend = (original_key.dst, original_key.dst_port_be);
            pair.set_dnat(packet.backend.id, frontend, backend);
        }
    }
    if packet.is_evaluated_as_original {
        if pair.original.reverse_key(&original_key) != packet.reply_key {
            return Err(DropReason::NoTranslation);
        }
        let replier = &packet.replier;
        if pair.reply.source_kind != replier.source_kind || pair.reply.source != replier.source {
            return Err(DropReason::InnerSource);
        }
    }
    Ok(())
}

/// The entry of the packet's own direction.
#[inline(always)]
pub fn own_entry(packet: &Packet) -> &'static mut FlowEntry {
    let FlowPair { original, reply } = packet.pair();
    if packet.previous.is_reply { reply } else { original }
}

/// Writes both entries, or none, once their packet could be sent on by them.
///
/// # Errors
/// [`DropReason::FlowTableFull`], [`DropReason::MasqueradePorts`].
#[inline(always)]
pub fn write(packet: &mut Packet) -> Result<(), DropReason> {
    let FlowPair { original, reply } = packet.pair();
    let (own, other) = if packet.previous.is_reply { (reply, original) } else { (original, reply) };
    // By reference: copies would not fit on the stack.
    let (key, other_key) = (&packet.key, &own.reverse_key(&packet.key));
    // SAFETY: as in `Flow::entry`; read before anything is written below.
    let old_own = if packet.previous.is_absent { None } else { unsafe { FLOWS_V4.get(key) } };
    // SAFETY: as above.
    let old_other = unsafe { FLOWS_V4.get(other_key) };
    // The port of a flow with another source was free: nobody may have taken it since. A backend's flow takes none.
    let takes_port =
        own.is_translated() && (own.backend == 0 || own.is_translated_at_both_ends()) && old_other.is_none();
    let is_new = !carry_over((own, other), (old_own, old_other), opens(packet.tcp_flags));

    own.packets += 1;
    own.bytes += u64::from(packet.bytes());
    own.last_seen_ns = now_ns();
    own.tcp_flags |= packet.tcp_flags;
    if is_new {
        report::flow(packet, EventKind::FlowNew, own, None);
    }
    if may_end(packet.tcp_flags) && own.flags & ENDED == 0 {
        flow::end(packet, own, Some(other));
    }
    if packet.is_affinity_new {
        affinity::remember(packet);
    }

    let (own, other): (&FlowEntry, &FlowEntry) = (own, other);
    let only_if_absent = if takes_port { u64::from(BPF_NOEXIST) } else { 0 };
    if FLOWS_V4.insert(other_key, other, only_if_absent).is_err() {
        return Err(if takes_port { DropReason::MasqueradePorts } else { DropReason::FlowTableFull });
    }
    if FLOWS_V4.insert(key, own, 0).is_err() {
        // One entry alone would be a flow with one end; what cannot be removed is not there.
        let _ = FLOWS_V4.remove(key);
        let _ = FLOWS_V4.remove(other_key);
        return Err(DropReason::FlowTableFull);
    }
    Ok(())
}
