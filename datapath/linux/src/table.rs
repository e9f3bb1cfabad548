//! A map of the kernel as a typed table: whole reads, and writes of which one bad entry takes down no other.

use std::{
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, OwnedFd},
};

use datapath_abi::AbiBytes;

use crate::{bpf, error::DatapathError};

/// Entries per batch call: large enough that the system call does not count (FACTS: 100,000 entries in 38 ms),
/// small enough that the buffers stay in cache.
const BATCH_ENTRIES: u32 = 4_096;

/// A handle on one pinned map. Its sizes were checked against `K` and `V` when it was opened.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: AbiBytes, V: AbiBytes> Table<K, V> {
    /// Takes a map whose key and value sizes, as the kernel tells them, are these.
    ///
    /// # Errors
    /// [`DatapathError::Layout`] if they are not those of `K` and `V`.
    pub(crate) fn new(
        name: &'static str,
        fd: OwnedFd,
        key_bytes: u32,
        value_bytes: u32,
    ) -> Result<Self, DatapathError> {
        if key_bytes as usize != size_of::<K>() || value_bytes as usize != size_of::<V>() {
            return Err(DatapathError::Layout {
                map: name.into(),
                text: format!("{key_bytes}+{value_bytes} bytes, not {}+{}", size_of::<K>(), size_of::<V>()),
            });
        }
        Ok(Self { name, fd, types: PhantomData })
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: key and value have the map's sizes (checked in `new`).
        match unsafe { bpf::lookup(self.fd.as_fd(), bytes(key), value.as_mut_ptr().cast()) } {
            // SAFETY: the kernel wrote all of it, and every bit pattern is a `V` (`AbiBytes`).
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.error("read", error)),
        }
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        // SAFETY: key and value have the map's sizes (checked in `new`).
        unsafe { bpf::update(self.fd.as_fd(), bytes(key), bytes(value)) }
            .map_err(|error| self.error("write", error))
    }

    /// Deletes an entry; one that is not there counts as deleted.
    pub(crate) fn delete(&self, key: &K) -> Result<(), DatapathError> {
        // SAFETY: the key has the map's size (checked in `new`).
        match unsafe { bpf::delete(self.fd.as_fd(), bytes(key)) } {
            Err(error) if !is_absent(&error) => Err(self.error("delete from", error)),
            _ => Ok(()),
        }
    }

    /// Writes entries in batches. What a batch refuses is tried by itself, so that the answer names exactly
    /// the entries that failed, by their place in `entries`.
    pub(crate) fn put_all(&self, entries: &[(K, V)]) -> Vec<(usize, DatapathError)> {
        let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
        self.in_batches(
            entries.len(),
            |from, count| {
                // SAFETY: `count` keys and values of the map's sizes follow index `from`.
                unsafe { bpf::update_batch(self.fd.as_fd(), bytes(&keys[from]), bytes(&values[from]), count) }
            },
            |index| self.put(&keys[index], &values[index]),
        )
    }

    /// Deletes entries in batches; those that are not there count as deleted. Failures as in [`Self::put_all`].
    pub(crate) fn delete_all(&self, keys: &[K]) -> Vec<(usize, DatapathError)> {
        self.in_batches(
            keys.len(),
            |from, count| {
                // SAFETY: `count` keys of the map's size follow index `from`.
                unsafe { bpf::delete_batch(self.fd.as_fd(), bytes(&keys[from]), count) }
            },
            |index| self.delete(&keys[index]),
        )
    }

    fn in_batches(
        &self,
        len: usize,
        batch: impl Fn(usize, u32) -> bpf::Batch,
        single: impl Fn(usize) -> Result<(), DatapathError>,
    ) -> Vec<(usize, DatapathError)> {
        let mut failures = Vec::new();
        let mut index = 0;
        while index < len {
            let count = (len - index).min(BATCH_ENTRIES as usize);
            let done = batch(index, count as u32);
            index += (done.count as usize).min(count);
            // The one that stopped the batch is tried alone; then the rest goes on in batches.
            if done.error.is_some() && index < len {
                if let Err(error) = single(index) {
                    failures.push((index, error));
                }
                index += 1;
            }
        }
        failures
    }

    /// Reads the whole table, in the kernel's order.
    pub(crate) fn dump(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Counts the entries that `predicate` holds for. O(table).
    pub(crate) fn count(&self, predicate: impl Fn(&K, &V) -> bool) -> Result<u64, DatapathError> {
        let mut count = 0;
        self.for_each(|key, value| count += u64::from(predicate(key, value)))?;
        Ok(count)
    }

    /// Walks the whole table. Entries that come or go meanwhile may or may not be seen.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        let mut room = BATCH_ENTRIES;
        let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); room as usize];
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); room as usize];
        let mut cursor = bpf::Cursor::new(size_of::<K>());
        loop {
            // SAFETY: both buffers hold `room` items of the map's sizes.
            let batch = unsafe {
                bpf::lookup_batch(
                    self.fd.as_fd(),
                    &mut cursor,
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    room,
                )
            };
            for (key, value) in keys.iter().zip(&values).take(batch.count as usize) {
                // SAFETY: the kernel wrote the first `count` of both; every bit pattern is valid (`AbiBytes`).
                let (key, value) = unsafe { (key.assume_init_ref(), value.assume_init_ref()) };
                visit(key, value);
            }
            match batch.error.as_ref().map(|error| error.raw_os_error()) {
                None => {}
                Some(Some(libc::ENOENT)) => return Ok(()),
                Some(Some(libc::ENOSPC)) => {
                    room *= 2;
                    keys.resize(room as usize, MaybeUninit::uninit());
                    values.resize(room as usize, MaybeUninit::uninit());
                }
                Some(Some(libc::EINVAL | bpf::ENOTSUPP)) => return self.for_each_single(visit),
                Some(_) => {
                    return Err(self.error("dump", batch.error.unwrap_or_else(io::Error::last_os_error)));
                }
            }
        }
    }

    /// [`Self::for_each`] for kernels whose map type has no batch commands.
    fn for_each_single(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        let mut last: Option<K> = None;
        loop {
            let mut next = MaybeUninit::<K>::uninit();
            let from = last.as_ref().map_or(std::ptr::null(), bytes);
            // SAFETY: both keys have the map's size (checked in `new`).
            match unsafe { bpf::next_key(self.fd.as_fd(), from, next.as_mut_ptr().cast()) } {
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(self.error("dump", error)),
                Ok(()) => {}
            }
            // SAFETY: the kernel wrote it, and every bit pattern is valid (`AbiBytes`).
            let key = unsafe { next.assume_init() };
            if let Some(value) = self.get(&key)? {
                visit(&key, &value);
            }
            last = Some(key);
        }
    }

    fn error(&self, operation: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Map { map: self.name, operation, source }
    }
}

fn bytes<T: AbiBytes>(value: &T) -> *const u8 {
    std::ptr::from_ref(value).cast()
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use aya::maps::MapData;
    use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};
    use datapath_abi::{LpmKey, V4};

    use super::*;

    /// More than two batches, so that cursors are used.
    const ENTRIES: u32 = 10_000;

    /// `None` where the kernel lets us make no maps.
    fn table<K: AbiBytes>(kind: bpf_map_type, flags: u32) -> Option<Table<K, u32>> {
        let (key_bytes, value_bytes) = (size_of::<K>() as u32, 4);
        let object = aya_obj::Map::new_from_params(kind as u32, key_bytes, value_bytes, ENTRIES, flags);
        match MapData::create(object, "warren_test", None) {
            Ok(data) => {
                let fd = data.fd().as_fd().try_clone_to_owned().expect("a descriptor");
                Some(Table::new("warren_test", fd, key_bytes, value_bytes).expect("the sizes are right"))
            }
            Err(error) => {
                println!("skipped: needs root and BPF ({error})");
                None
            }
        }
    }

    fn check<K: AbiBytes + Ord + std::fmt::Debug>(table: &Table<K, u32>, key: impl Fn(u32) -> K) {
        let mut entries: Vec<(K, u32)> = (0..ENTRIES).map(|number| (key(number), number)).collect();
        entries.sort_unstable();
        assert!(table.put_all(&entries).is_empty());

        let mut read = table.dump().expect("dump");
        read.sort_unstable();
        assert_eq!(read, entries, "in batches");
        let mut read = Vec::new();
        table.for_each_single(|key, value| read.push((*key, *value))).expect("walk");
        read.sort_unstable();
        assert_eq!(read, entries, "one by one");

        // Every other one, and some that are not there.
        let keys: Vec<K> = entries.iter().step_by(2).map(|(key, _)| *key).chain([key(ENTRIES)]).collect();
        assert!(table.delete_all(&keys).is_empty());
        assert!(table.delete_all(&keys).is_empty(), "what is not there counts as deleted");
        assert_eq!(table.count(|_, _| true).expect("count"), u64::from(ENTRIES / 2));
    }

    #[test]
    fn hash_in_batches_and_one_by_one() {
        let Some(table) = table::<V4>(bpf_map_type::BPF_MAP_TYPE_HASH, 0) else { return };
        check(&table, u32::to_be_bytes);

        // Full: what is too much fails by itself, and only that.
        let room: Vec<(V4, u32)> =
            (0..ENTRIES / 2 + 3).map(|number| ((ENTRIES + number).to_be_bytes(), number)).collect();
        let failed: Vec<usize> = table.put_all(&room).into_iter().map(|(index, _)| index).collect();
        assert_eq!(failed, [5000, 5001, 5002]);
    }

    #[test]
    fn trie_in_batches_and_one_by_one() {
        let Some(table) = table::<LpmKey<V4>>(bpf_map_type::BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC) else {
            return;
        };
        let entries: Vec<_> = (0..ENTRIES)
            .map(|number| (LpmKey { prefix_len: 24, address: (number << 8).to_be_bytes() }, number))
            .collect();
        assert!(table.put_all(&entries).is_empty());
        let mut single = Vec::new();
        table.for_each_single(|key, value| single.push((key.address, *value))).expect("walk");
        let mut batch: Vec<_> =
            table.dump().expect("dump").into_iter().map(|(key, value)| (key.address, value)).collect();
        single.sort_unstable();
        batch.sort_unstable();
        assert_eq!((single.len(), &single), (entries.len(), &batch));

        // A bad entry takes down none of its neighbours.
        let bad = LpmKey { prefix_len: 33, address: [0; 4] };
        let some = [(entries[0].0, 7), (bad, 8), (entries[1].0, 9)];
        let failed: Vec<usize> = table.put_all(&some).into_iter().map(|(index, _)| index).collect();
        assert_eq!(failed, [1]);
        assert_eq!(
            (table.get(&entries[0].0).expect("get"), table.get(&entries[1].0).expect("get")),
            (Some(7), Some(9))
        );
    }
}
