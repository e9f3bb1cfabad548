//! From the maps of one build to those of another, older or newer: what theirs hold goes into ours, field by field
//! and by name, while their programs are still at work. Decision 0015 has the order of steps, and why a crash
//! between any two leaves a state from which either build goes on.
//!
//! Invariant: never writes to a map of the other build.

use std::{
    mem::offset_of,
    os::fd::{AsFd, OwnedFd},
};

use aya_obj::generated::bpf_map_type;
use datapath_abi::{ABI_VERSION, FlowEntry, NodeConfig, map_name};

use crate::{
    bpf::{self, Present},
    descriptor::Maps,
    error::DatapathError,
    flows::now_ns,
    layout::{Conversion, Shape},
    maps::{Predecessor, TRANSIENT_MAPS},
    rows::{BATCH_ENTRIES, Rows},
    table,
};

/// By how much the programs' clock and the order of their writes may deceive: what was seen this shortly before
/// a copy began is copied again by the next. The coarse clock ticks every 10 ms at the slowest (`CONFIG_HZ=100`).
const CLOCK_SLACK_NS: u64 = 50_000_000;

/// Fills our maps from those of the same names, but for the flows. The configuration gets our version.
pub(crate) fn carry_state(predecessors: &[Predecessor], maps: &Maps) -> Result<(), DatapathError> {
    for predecessor in predecessors {
        let name = predecessor.name;
        if TRANSIENT_MAPS.contains(&name) || name == map_name::FLOWS_V4 {
            continue;
        }
        let Some(conversion) = predecessor.conversion() else { continue };
        let (theirs, ours) = (predecessor.theirs()?, predecessor.ours()?);
        let refused = if predecessor.our_shape.kind == bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32 {
            carry_per_cpu(predecessor, &conversion)?
        } else {
            carry_rows(&theirs, &ours, &conversion, Present::Replace, |_| true)?.refused
        };
        if refused > 0 {
            tracing::warn!(map = name, refused, "entries of another build have no room in this one's map");
        }
    }
    let config = maps.config.get(&0)?.unwrap_or_default();
    maps.config.put(&0, &NodeConfig { abi_version: ABI_VERSION, ..config })
}

impl Predecessor {
    /// How their entries become ours; none, with a warning, if they cannot.
    fn conversion(&self) -> Option<Conversion> {
        let conversion = Conversion::between(&self.their_shape, &self.our_shape);
        if conversion.is_none() {
            tracing::warn!(
                map = self.name,
                "a pinned map cannot be read by this build: its own begins empty"
            );
        }
        conversion
    }

    fn theirs(&self) -> Result<Rows, DatapathError> {
        rows(self.name, &self.theirs, &self.their_shape)
    }

    fn ours(&self) -> Result<Rows, DatapathError> {
        rows(self.name, &self.ours, &self.our_shape)
    }
}

fn rows(name: &'static str, map: &OwnedFd, shape: &Shape) -> Result<Rows, DatapathError> {
    let fd = map.try_clone().map_err(|source| DatapathError::Map { map: name, operation: "open", source })?;
    Ok(Rows::new(name, fd, shape.key_bytes as usize, shape.value_bytes as usize))
}

/// What became of a copy.
#[derive(Debug, Default, Clone, Copy)]
struct Copied {
    entries: usize,
    refused: usize,
}

/// Copies all entries that `keep` says, having changed them as it likes.
fn carry_rows(
    theirs: &Rows,
    ours: &Rows,
    conversion: &Conversion,
    present: Present,
    mut keep: impl FnMut(&mut [u8]) -> bool,
) -> Result<Copied, DatapathError> {
    let mut copied = Copied::default();
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (mut key, mut value) = (vec![0; ours.key_bytes], vec![0; ours.value_bytes]);
    let mut flush = |keys: &mut Vec<u8>, values: &mut Vec<u8>| {
        copied.entries += keys.len() / ours.key_bytes;
        copied.refused += ours.put_all(keys, values, present).len();
        keys.clear();
        values.clear();
    };
    theirs.for_each(|their_key, their_value| {
        conversion.value(their_value, &mut value);
        if !keep(&mut value) {
            return;
        }
        conversion.key(their_key, &mut key);
        keys.extend_from_slice(&key);
        values.extend_from_slice(&value);
        if keys.len() == BATCH_ENTRIES as usize * ours.key_bytes {
            flush(&mut keys, &mut values);
        }
    })?;
    flush(&mut keys, &mut values);
    Ok(copied)
}

/// Copies a per-CPU array slot by slot; returns how many slots ours has not.
fn carry_per_cpu(map: &Predecessor, conversion: &Conversion) -> Result<usize, DatapathError> {
    let fail = |operation| move |source| DatapathError::Map { map: map.name, operation, source };
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| fail("count the CPUs of")(source))?;
    // The kernel takes and gives each CPU's value at a multiple of eight bytes.
    let stride = |shape: &Shape| shape.value_bytes.next_multiple_of(8) as usize;
    let (their_stride, our_stride) = (stride(&map.their_shape), stride(&map.our_shape));
    let (mut theirs, mut ours) = (vec![0u8; their_stride * cpus], vec![0u8; our_stride * cpus]);
    let slots = map.their_shape.max_entries.min(map.our_shape.max_entries);
    for slot in 0..slots {
        // SAFETY: array keys are u32; both buffers hold a value for each possible CPU.
        unsafe { bpf::lookup(map.theirs.as_fd(), (&raw const slot).cast(), theirs.as_mut_ptr()) }
            .map_err(fail("read"))?;
        for (their, our) in theirs.chunks_exact(their_stride).zip(ours.chunks_exact_mut(our_stride)) {
            let length = map.our_shape.value_bytes as usize;
            conversion.value(&their[..map.their_shape.value_bytes as usize], &mut our[..length]);
        }
        // SAFETY: as above.
        unsafe { bpf::update(map.ours.as_fd(), (&raw const slot).cast(), ours.as_ptr(), Present::Replace) }
            .map_err(fail("write"))?;
    }
    Ok((map.their_shape.max_entries - slots) as usize)
}

/// Flow tables of other programs, whose flows go into ours.
#[derive(Debug)]
pub(crate) struct FlowHandover<'a> {
    sources: Vec<FlowSource>,
    ours: &'a Rows,
}

#[derive(Debug)]
struct FlowSource {
    rows: Rows,
    conversion: Conversion,
    /// What was last seen before this has been copied.
    copied_until_ns: u64,
}

impl<'a> FlowHandover<'a> {
    /// From the pinned table of another build, if there is one, and from the tables that programs at work use
    /// and that are not ours: an agent that died while it replaced programs leaves two at work.
    pub(crate) fn new(
        predecessors: &[Predecessor],
        program_ids: &[u32],
        maps: &'a Maps,
    ) -> Result<Self, DatapathError> {
        let ours = maps.flows_v4.rows();
        let our_shape = Shape::of(ours.name(), ours.fd())?;
        let fail = |source| DatapathError::Map { map: map_name::FLOWS_V4, operation: "find", source };
        let mut seen = vec![bpf::map_info(ours.fd()).map_err(fail)?.id];
        let mut found = Vec::new();
        for predecessor in predecessors.iter().filter(|map| map.name == map_name::FLOWS_V4) {
            seen.push(bpf::map_info(predecessor.theirs.as_fd()).map_err(fail)?.id);
            found.push(predecessor.theirs.try_clone().map_err(fail)?);
        }
        for program in program_ids {
            for id in bpf::program_map_ids(*program).map_err(fail)? {
                if seen.contains(&id) {
                    continue;
                }
                seen.push(id);
                let map = bpf::map_by_id(id).map_err(fail)?;
                if bpf::is_named(&bpf::map_info(map.as_fd()).map_err(fail)?, map_name::FLOWS_V4) {
                    found.push(map);
                }
            }
        }
        let mut sources = Vec::new();
        for map in found {
            let shape = Shape::of(map_name::FLOWS_V4, map.as_fd())?;
            match Conversion::between(&shape, &our_shape) {
                Some(conversion) => sources.push(FlowSource {
                    rows: rows(map_name::FLOWS_V4, &map, &shape)?,
                    conversion,
                    copied_until_ns: 0,
                }),
                None => tracing::warn!("flows of another build cannot be read: they are decided anew"),
            }
        }
        Ok(Self { sources, ours })
    }

    /// Copies what was seen since the last copy; `present`: what becomes of flows that ours has already. Every
    /// entry is marked as one that the next packet decides again: what they decided, they decided from their
    /// maps, and as they understood them.
    pub(crate) fn carry(&mut self, present: Present) -> Result<usize, DatapathError> {
        let mut copied = Copied::default();
        for source in &mut self.sources {
            let began_ns = now_ns()?;
            let since_ns = source.copied_until_ns;
            let keep = |value: &mut [u8]| {
                let entry: FlowEntry = table::from_bytes(value);
                // Epochs only grow, and no entry is of a later one than now: this one never was.
                let stale = entry.epoch.wrapping_sub(1).to_ne_bytes();
                value[offset_of!(FlowEntry, epoch)..][..stale.len()].copy_from_slice(&stale);
                entry.last_seen_ns >= since_ns
            };
            let more = carry_rows(&source.rows, self.ours, &source.conversion, present, keep)?;
            copied.entries += more.entries;
            copied.refused += more.refused;
            source.copied_until_ns = began_ns.saturating_sub(CLOCK_SLACK_NS);
        }
        if copied.refused > 0 {
            tracing::warn!(
                refused = copied.refused,
                "flows of another build have no room in this one's table"
            );
        }
        Ok(copied.entries)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use aya::maps::MapData;
    use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LRU_HASH;
    use datapath_abi::MAX_FLOWS;
    use nix::time::{ClockId, clock_gettime};

    use super::*;
    use crate::{btf::Field, layout::Fields};

    /// A table of keys of 16 bytes; values have the named fields of 8 bytes, one after the other. `None` where the
    /// kernel lets us make no maps.
    fn table(values: &[&str]) -> Option<(Rows, Shape)> {
        let (key_bytes, value_bytes) = (16, 8 * values.len() as u32);
        let kind = BPF_MAP_TYPE_LRU_HASH as u32;
        let object = aya_obj::Map::new_from_params(kind, key_bytes, value_bytes, MAX_FLOWS, 0);
        let data = match MapData::create(object, "warren_test", None) {
            Ok(data) => data,
            Err(error) => {
                println!("skipped: needs root and BPF ({error})");
                return None;
            }
        };
        let value = (0..).zip(values);
        let value = value.map(|(place, name)| Field { name: (*name).into(), offset: 8 * place, bytes: 8 });
        let key = vec![Field { name: "key".into(), offset: 0, bytes: 16 }];
        let fields = Some(Fields { key, value: value.collect() });
        let shape = Shape { kind, flags: 0, key_bytes, value_bytes, max_entries: MAX_FLOWS, fields };
        let fd = data.fd().as_fd().try_clone_to_owned().expect("a descriptor");
        Some((Rows::new("warren_test", fd, key_bytes as usize, value_bytes as usize), shape))
    }

    /// Keys are numbers, twice; values are the number and those that follow it.
    fn fill(rows: &Rows, numbers: std::ops::Range<u64>, add: u64) {
        let words = rows.value_bytes as u64 / 8;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for number in numbers {
            for _ in 0..2 {
                keys.extend_from_slice(&number.to_ne_bytes());
            }
            for word in 0..words {
                values.extend_from_slice(&(number + add + word).to_ne_bytes());
            }
        }
        assert!(rows.put_all(&keys, &values, Present::Replace).is_empty());
    }

    /// How many rows there are, and for how many it is right what a question says of key and words.
    fn count(rows: &Rows, right: impl Fn(u64, &dyn Fn(usize) -> u64) -> bool) -> (usize, usize) {
        let (mut all, mut good) = (0, 0);
        let word_at = |bytes: &[u8], place: usize| {
            u64::from_ne_bytes(bytes[8 * place..][..8].try_into().expect("eight bytes"))
        };
        rows.for_each(|key, value| {
            all += 1;
            good += usize::from(right(word_at(key, 0), &|place| word_at(value, place)));
        })
        .expect("read it");
        (all, good)
    }

    const OLD: [&str; 11] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
    const NEW: [&str; 12] = ["new", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];

    #[test]
    fn a_full_flow_table_is_carried_in_a_moment() {
        let (Some((old, old_shape)), Some((new, new_shape))) = (table(&OLD), table(&NEW)) else { return };
        fill(&old, 0..MAX_FLOWS.into(), 0);
        let (filled, _) = count(&old, |_, _| true);
        let conversion = Conversion::between(&old_shape, &new_shape).expect("the keys agree");
        let cpu = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("this thread's"));
        let (start, start_cpu) = (Instant::now(), cpu());
        let copied = carry_rows(&old, &new, &conversion, Present::Replace, |_| true).expect("copy");
        // On a busy machine only the second says something.
        println!("{filled} entries in {:?}, {:?} of work", start.elapsed(), cpu() - start_cpu);
        assert_eq!((copied.entries, copied.refused), (filled, 0));
        let (there, right) = count(&new, |key, at| (at(0), at(1), at(11)) == (0, key, key + 10));
        assert_eq!(there, right);
        // An LRU makes room before it is quite full.
        assert!(there > filled - filled / 100, "{there} of {filled}");
    }

    #[test]
    fn what_is_there_already_stays() {
        let (Some((old, old_shape)), Some((new, new_shape))) = (table(&OLD), table(&NEW)) else { return };
        fill(&old, 0..10_000, 0);
        fill(&new, 0..5_000, 1_000_000);
        let conversion = Conversion::between(&old_shape, &new_shape).expect("the keys agree");
        let copied = carry_rows(&old, &new, &conversion, Present::Keep, |_| true).expect("copy");
        assert_eq!((copied.entries, copied.refused), (10_000, 0), "what is there is no refusal");
        let theirs = |key: u64, at: &dyn Fn(usize) -> u64| at(1) == key;
        assert_eq!(count(&new, theirs), (10_000, 5_000));
        carry_rows(&old, &new, &conversion, Present::Replace, |_| true).expect("copy");
        assert_eq!(count(&new, theirs), (10_000, 10_000));
    }
}
