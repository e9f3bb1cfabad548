//! A map of the kernel as a typed table.
//!
//! An array has a value for every key: there, zero stands for "no entry".

use std::{
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::fd::OwnedFd,
    slice,
};

use datapath_abi::AbiBytes;

use crate::{bpf::Present, error::DatapathError, rows::Rows};

/// A handle on one pinned map. Its sizes were checked against `K` and `V` when it was opened.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    rows: Rows,
    is_array: bool,
    types: PhantomData<(K, V)>,
}

impl<K: AbiBytes, V: AbiBytes> Table<K, V> {
    /// Takes a map whose kind and sizes, as the kernel tells them, are these.
    ///
    /// # Errors
    /// [`DatapathError::Layout`] if the sizes are not those of `K` and `V`.
    pub(crate) fn new(
        name: &'static str,
        fd: OwnedFd,
        is_array: bool,
        key_bytes: u32,
        value_bytes: u32,
    ) -> Result<Self, DatapathError> {
        let (key_bytes, value_bytes) = (key_bytes as usize, value_bytes as usize);
        if key_bytes != size_of::<K>() || value_bytes != size_of::<V>() {
            return Err(DatapathError::Layout {
                map: name.into(),
                text: format!("{key_bytes}+{value_bytes} bytes, not {}+{}", size_of::<K>(), size_of::<V>()),
            });
        }
        Ok(Self { rows: Rows::new(name, fd, key_bytes, value_bytes), is_array, types: PhantomData })
    }

    /// Another handle on the same map.
    pub(crate) fn try_clone(&self) -> Result<Self, DatapathError> {
        Ok(Self { rows: self.rows.try_clone()?, is_array: self.is_array, types: PhantomData })
    }

    /// The same map without types.
    pub(crate) const fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        let mut value = vec![0; size_of::<V>()];
        Ok(self.rows.get(bytes(key), &mut value)?.then(|| from_bytes(&value)))
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> Result<(), DatapathError> {
        self.rows.put(bytes(key), bytes(value), Present::Replace)
    }

    /// Deletes an entry; an entry that is not there counts as deleted.
    pub(crate) fn delete(&self, key: &K) -> Result<(), DatapathError> {
        match self.is_array {
            true => self.rows.put(bytes(key), &vec![0; size_of::<V>()], Present::Replace),
            false => self.rows.delete(bytes(key)),
        }
    }

    /// Writes entries in batches. What a batch refuses is tried by itself, so that the answer names exactly
    /// the entries that failed, by their place in `entries`.
    pub(crate) fn put_all(&self, entries: &[(K, V)]) -> Vec<(usize, DatapathError)> {
        let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
        self.rows.put_all(all_bytes(&keys), all_bytes(&values), Present::Replace)
    }

    /// Deletes entries in batches; entries that are not there count as deleted. Failures as in [`Self::put_all`].
    pub(crate) fn delete_all(&self, keys: &[K]) -> Vec<(usize, DatapathError)> {
        match self.is_array {
            true => {
                let zeros = vec![0; size_of::<V>() * keys.len()];
                self.rows.put_all(all_bytes(keys), &zeros, Present::Replace)
            }
            false => self.rows.delete_all(all_bytes(keys)),
        }
    }

    /// Reads the whole table, in the kernel's order.
    pub(crate) fn dump(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Counts the entries. O(table).
    pub(crate) fn count(&self) -> Result<u64, DatapathError> {
        let mut count = 0;
        self.for_each_entry(|_, _| count += 1)?;
        Ok(count)
    }

    /// [`Self::for_each`] without the zeros of an array.
    pub(crate) fn for_each_entry(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        self.rows.for_each(|key, value| {
            if !self.is_array || value.iter().any(|byte| *byte != 0) {
                visit(&from_bytes(key), &from_bytes(value));
            }
        })
    }

    /// Walks the whole table. Entries that come or go meanwhile may or may not be seen.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), DatapathError> {
        self.rows.for_each(|key, value| visit(&from_bytes(key), &from_bytes(value)))
    }
}

fn bytes<T: AbiBytes>(value: &T) -> &[u8] {
    all_bytes(slice::from_ref(value))
}

fn all_bytes<T: AbiBytes>(values: &[T]) -> &[u8] {
    // SAFETY: no padding but explicit, hence initialised, bytes (`AbiBytes`).
    unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The value whose bytes these are.
pub(crate) fn from_bytes<T: AbiBytes>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: as many bytes as the value has; every bit pattern is valid (`AbiBytes`).
    unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        value.assume_init()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsFd;

    use aya::maps::MapData;
    use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};
    use datapath_abi::{LpmKey, V4};

    use super::*;

    /// More than two batches, so that cursors are used.
    const ENTRIES: u32 = 10_000;

    /// A map of its own. `None` where the kernel lets us make no maps.
    pub(crate) fn new_table<K: AbiBytes, V: AbiBytes>(
        kind: bpf_map_type,
        entries: u32,
        flags: u32,
    ) -> Option<Table<K, V>> {
        let (key_bytes, value_bytes) = (size_of::<K>() as u32, size_of::<V>() as u32);
        let object = aya_obj::Map::new_from_params(kind as u32, key_bytes, value_bytes, entries, flags);
        match MapData::create(object, "warren_test", None) {
            Ok(data) => {
                let fd = data.fd().as_fd().try_clone_to_owned().expect("a descriptor");
                Some(
                    Table::new("warren_test", fd, false, key_bytes, value_bytes)
                        .expect("the sizes are right"),
                )
            }
            Err(error) => {
                println!("skipped: needs root and BPF ({error})");
                None
            }
        }
    }

    fn table<K: AbiBytes>(kind: bpf_map_type, flags: u32) -> Option<Table<K, u32>> {
        new_table(kind, ENTRIES, flags)
    }

    fn check<K: AbiBytes + Ord + std::fmt::Debug>(table: &Table<K, u32>, key: impl Fn(u32) -> K) {
        let mut entries: Vec<(K, u32)> = (0..ENTRIES).map(|number| (key(number), number)).collect();
        entries.sort_unstable();
        assert!(table.put_all(&entries).is_empty());

        let mut read = table.dump().expect("dump");
        read.sort_unstable();
        assert_eq!(read, entries, "in batches");
        let mut read = Vec::new();
        table
            .rows
            .for_each_single(|key, value| read.push((from_bytes(key), from_bytes(value))))
            .expect("walk");
        read.sort_unstable();
        assert_eq!(read, entries, "one by one");

        // Every other one, and some that are not there.
        let keys: Vec<K> = entries.iter().step_by(2).map(|(key, _)| *key).chain([key(ENTRIES)]).collect();
        assert!(table.delete_all(&keys).is_empty());
        assert!(table.delete_all(&keys).is_empty(), "what is not there counts as deleted");
        assert_eq!(table.count().expect("count"), u64::from(ENTRIES / 2));
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
        let mut visit = |key: LpmKey<V4>, value: u32| single.push((key.address, value));
        table.rows.for_each_single(|key, value| visit(from_bytes(key), from_bytes(value))).expect("walk");
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
