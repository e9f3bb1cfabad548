//! What the flow table knew of a flow before it is decided again: which direction is the original one, and which backend the
//! flow has. So a reply is decided as the reply that it is, also after its entry's epoch went.

use datapath_abi::{DropReason, FlowAction, FlowEntry, NodeConfig, SourceKind, flow_flags};
use datapath_packet::opens;

use crate::{
    context::{Backend, Origin, Packet},
    decide::origin,
    epoch,
    maps::FLOWS_V4,
};

/// Remembers the packet's own entry, which holds no more.
#[inline(always)]
pub fn remember(packet: &mut Packet, entry: &FlowEntry) {
    let key = packet.key;
    let is_reply = entry.flags & flow_flags::REPLY != 0;
    let previous = &mut packet.previous;
    previous.is_reply = is_reply;
    previous.is_translated = entry.is_translated();
    if !previous.is_translated && entry.backend == 0 {
        return;
    }
    previous.is_translated_at_both_ends = entry.is_translated_at_both_ends();
    previous.original_key = entry.reverse_key(&key);
    let (address, port_be) =
        if is_reply { (key.src, key.src_port_be) } else { (entry.rewrite_dst, entry.rewrite_dst_port_be) };
    previous.backend = Backend { id: entry.backend, address, port_be };
    previous.is_of_external_client = if is_reply {
        entry.action == FlowAction::Underlay as u8 || entry.action == FlowAction::Stack as u8
    } else {
        entry.source_kind == SourceKind::Underlay as u8
    };
}

/// Whether the packet is a reply of a flow that is not translated: evaluated in the direction in which it goes.
#[inline(always)]
pub fn is_plain_reply(packet: &Packet) -> bool {
    packet.previous.is_reply && !packet.is_evaluated_as_original
}

/// Evaluates the reply of a translated flow as the flow's original direction: only that one names the frontend and the client
/// that the reply is translated back to. `translates`: the packet's hook translates.
///
/// # Errors
/// [`DropReason::NoTranslation`]: the packet would have to be translated, and its entry does not say how. Those of
/// [`origin::check_original`].
#[inline(always)]
pub fn apply(packet: &mut Packet, config: &NodeConfig, translates: bool) -> Result<(), DropReason> {
    if packet.previous.is_absent && !opens(packet.tcp_flags) {
        find_reverse(packet);
    }
    if !translates {
        return Ok(());
    }
    let previous = &packet.previous;
    if previous.is_reply && previous.is_translated {
        evaluate_as_original(packet);
        return origin::check_original(packet, config);
    }
    let is_untranslated_reply = previous.is_reply && previous.backend.id != 0;
    if is_untranslated_reply || packet.origin == Origin::Unproven {
        return Err(DropReason::NoTranslation);
    }
    Ok(())
}

/// The packet has no entry. The entry of the opposite direction may be left alone, and says which one is the original.
#[inline(always)]
fn find_reverse(packet: &mut Packet) {
    // SAFETY: as in `Flow::entry`; read at once.
    if let Some(reverse) = unsafe { FLOWS_V4.get(packet.key.reverse()) }
        && !reverse.is_translated()
    {
        packet.previous.is_reply = reverse.flags & flow_flags::REPLY == 0;
    }
}

#[inline(always)]
fn evaluate_as_original(packet: &mut Packet) {
    packet.is_evaluated_as_original = true;
    packet.replier = packet.from;
    packet.reply_key = packet.key;
    packet.key = packet.previous.original_key;
    (packet.dst_identity, packet.src_identity) = (packet.src_identity, 0);
    epoch::snapshot_source(packet);
    epoch::snapshot_destination(packet, packet.key.dst);
}

/// Gives the packet back the key that it came with, under which the flow table knows its flow and reports name it.
#[inline(always)]
pub fn restore_key(packet: &mut Packet) {
    if packet.backend.id != 0 {
        packet.key = packet.pre_dnat_key;
    }
    if packet.is_evaluated_as_original {
        packet.key = packet.reply_key;
        (packet.src_identity, packet.dst_identity) = (packet.dst_identity, packet.src_identity);
    }
}
