//! Slot tables in the kernel: a table is never changed, but made anew beside the one that is in use, with a number of its
//! own. The service's entry then switches from one to the other.

use std::collections::{BTreeMap, BTreeSet};

use datapath_abi::{BLOCK_SLOTS, ServiceEntry, SlotBlock, SlotsKey, service_flags};

use super::{Answer, Maps, first_failure};
use crate::error::DatapathError;

const BLOCK: usize = BLOCK_SLOTS as usize;

/// The numbers of tables: the next one, and the blocks of tables that no service leads to any more.
#[derive(Debug)]
pub(crate) struct SlotTables {
    next: u32,
    /// Deleted with the next plan: programs that run now may still look there.
    retired: Vec<SlotsKey>,
}

impl SlotTables {
    /// From what the kernel holds: tables that an agent that died has left are retired.
    pub(crate) fn adopt(maps: &Maps) -> Result<Self, DatapathError> {
        let mut used = BTreeSet::new();
        maps.services.for_each_entry(|_, entry| {
            used.insert(entry.table().0);
        })?;
        let (mut next, mut retired) = (1, Vec::new());
        maps.slots.for_each(|key, _| {
            next = next.max(key.table.wrapping_add(1));
            if !used.contains(&key.table) {
                retired.push(*key);
            }
        })?;
        Ok(Self { next, retired })
    }

    /// Deletes the tables that were retired before.
    pub(crate) fn clear(&mut self, maps: &Maps) -> Answer {
        if self.retired.is_empty() {
            return Ok(());
        }
        first_failure(maps.slots.delete_all(&self.retired))?;
        self.retired.clear();
        Ok(())
    }

    /// A number for a new table.
    pub(crate) fn take(&mut self) -> u32 {
        let table = self.next;
        self.next = self.next.wrapping_add(1);
        table
    }

    /// Nothing leads to the table of an entry any more.
    pub(crate) fn retire(&mut self, entry: &ServiceEntry) {
        if entry.flags & service_flags::PRESENT != 0 {
            let (table, slots) = entry.table();
            self.retired.extend((0..blocks(slots + entry.members)).map(|block| SlotsKey { table, block }));
        }
    }

    /// Retires the blocks of tables that nobody knows, and returns the numbers of those tables.
    pub(crate) fn retire_unknown<'a>(
        &mut self,
        blocks: impl Iterator<Item = &'a SlotsKey>,
        used: &BTreeSet<u32>,
    ) -> BTreeSet<u32> {
        let retired: BTreeSet<u32> = self.retired.iter().map(|key| key.table).collect();
        let unknown = |key: &&SlotsKey| !used.contains(&key.table) && !retired.contains(&key.table);
        let unknown: Vec<SlotsKey> = blocks.filter(unknown).copied().collect();
        let tables = unknown.iter().map(|key| key.table).collect();
        self.retired.extend(unknown);
        tables
    }
}

/// The blocks of a table with these words.
pub(crate) fn split(table: u32, words: &[u32]) -> impl Iterator<Item = (SlotsKey, SlotBlock)> {
    (0..).zip(words.chunks(BLOCK)).map(move |(block, words)| {
        let mut slots = [0; BLOCK];
        slots[..words.len()].copy_from_slice(words);
        (SlotsKey { table, block }, SlotBlock { slots })
    })
}

/// The first `count` words of a table; `None` if it is not whole.
pub(crate) fn join(
    table: u32,
    count: u32,
    blocks_by_key: &BTreeMap<SlotsKey, SlotBlock>,
) -> Option<Vec<u32>> {
    let range = SlotsKey { table, block: 0 }..SlotsKey { table, block: blocks(count) };
    let words = blocks_by_key.range(range).flat_map(|(_, block)| block.slots).take(count as usize);
    let words: Vec<u32> = words.collect();
    (words.len() == count as usize).then_some(words)
}

const fn blocks(words: u32) -> u32 {
    words.div_ceil(BLOCK_SLOTS)
}
