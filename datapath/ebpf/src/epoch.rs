//! Epochs: user space writes a map first and raises the epoch of the address's shard after. The programs read epochs
//! before the maps that they decide from, so that a decision made from old entries is never valid.

use datapath_abi::{FlowEntry, V4, epoch_shard_v4};
use datapath_packet::is_current;

use crate::{context::Packet, maps};

/// Notes the epoch of the source that is evaluated.
#[inline(always)]
pub fn snapshot_source(packet: &mut Packet) {
    let shard = epoch_shard_v4(packet.key.src) as u16;
    (packet.epochs.src_shard, packet.epochs.src_epoch) = (shard, epoch(shard));
}

/// Notes the epoch of the destination that is evaluated.
#[inline(always)]
pub fn snapshot_destination(packet: &mut Packet, dst: V4) {
    let shard = epoch_shard_v4(dst) as u16;
    (packet.epochs.dst_shard, packet.epochs.dst_epoch) = (shard, epoch(shard));
}

/// Whether nothing has changed that the entry depends on.
#[inline(always)]
pub fn is_valid(entry: &FlowEntry) -> bool {
    is_current(entry, epoch(entry.src_shard), epoch(entry.dst_shard))
}

#[inline(always)]
fn epoch(shard: u16) -> u32 {
    maps::EPOCHS.get(u32::from(shard)).copied().unwrap_or(0)
}
