//! A map of the kernel as rows of bytes: whole reads, and batched writes in which an entry that fails does not fail the
//! others.
//!
//! For maps whose sizes are known at run time only; [`crate::table::Table`] adds the types.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{
    bpf::{self, Present},
    error::DatapathError,
};

/// Entries per batch call: large enough that the system call does not count (FACTS: 100,000 entries in 38 ms),
/// small enough that the buffers stay in cache.
pub(crate) const BATCH_ENTRIES: u32 = 4_096;

/// A handle on a map without values by CPU, with its sizes.
#[derive(Debug)]
pub(crate) struct Rows {
    name: &'static str,
    fd: OwnedFd,
    pub key_bytes: usize,
    pub value_bytes: usize,
}

impl Rows {
    /// A map with the sizes that the kernel reports.
    pub(crate) const fn new(name: &'static str, fd: OwnedFd, key_bytes: usize, value_bytes: usize) -> Self {
        Self { name, fd, key_bytes, value_bytes }
    }

    /// Another handle on the same map.
    pub(crate) fn try_clone(&self) -> Result<Self, DatapathError> {
        let Self { name, fd, key_bytes, value_bytes } = self;
        let fd = fd.try_clone().map_err(|error| self.error("open", error))?;
        Ok(Self::new(name, fd, *key_bytes, *value_bytes))
    }

    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads the value of a key into `value`, which has the size of values. False if the key has no entry.
    pub(crate) fn get(&self, key: &[u8], value: &mut [u8]) -> Result<bool, DatapathError> {
        assert_eq!((key.len(), value.len()), (self.key_bytes, self.value_bytes), "{}", self.name);
        // SAFETY: key and value have the map's sizes.
        match unsafe { bpf::lookup(self.fd.as_fd(), key.as_ptr(), value.as_mut_ptr()) } {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(self.error("read", error)),
        }
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8], present: Present) -> Result<(), DatapathError> {
        assert_eq!((key.len(), value.len()), (self.key_bytes, self.value_bytes), "{}", self.name);
        // SAFETY: key and value have the map's sizes.
        match unsafe { bpf::update(self.fd.as_fd(), key.as_ptr(), value.as_ptr(), present) } {
            Err(error) if present == Present::Keep && error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map_err(|error| self.error("write", error)),
        }
    }

    /// Deletes an entry; an entry that is not there counts as deleted.
    pub(crate) fn delete(&self, key: &[u8]) -> Result<(), DatapathError> {
        assert_eq!(key.len(), self.key_bytes, "{}", self.name);
        // SAFETY: the key has the map's size.
        match unsafe { bpf::delete(self.fd.as_fd(), key.as_ptr()) } {
            Err(error) if !is_absent(&error) => Err(self.error("delete from", error)),
            _ => Ok(()),
        }
    }

    /// Writes entries in batches; keys and values lie one after the other. An entry that fails a batch is written by itself, so
    /// that the answer names exactly the entries that failed, by their place.
    pub(crate) fn put_all(
        &self,
        keys: &[u8],
        values: &[u8],
        present: Present,
    ) -> Vec<(usize, DatapathError)> {
        let (key_bytes, value_bytes) = (self.key_bytes, self.value_bytes);
        let len = keys.len() / key_bytes;
        assert_eq!((keys.len(), values.len()), (len * key_bytes, len * value_bytes), "{}", self.name);
        self.in_batches(
            len,
            |from, count| {
                let (key, value) = (&keys[from * key_bytes..], &values[from * value_bytes..]);
                // SAFETY: `count` keys and values of the map's sizes follow (`in_batches` keeps within `len`).
                unsafe { bpf::update_batch(self.fd.as_fd(), key.as_ptr(), value.as_ptr(), count, present) }
            },
            |index| {
                let (key, value) = (&keys[index * key_bytes..], &values[index * value_bytes..]);
                self.put(&key[..key_bytes], &value[..value_bytes], present)
            },
        )
    }

    /// Deletes entries in batches; entries that are not there count as deleted. Failures as in [`Self::put_all`].
    pub(crate) fn delete_all(&self, keys: &[u8]) -> Vec<(usize, DatapathError)> {
        let key_bytes = self.key_bytes;
        let len = keys.len() / key_bytes;
        assert_eq!(keys.len(), len * key_bytes, "{}", self.name);
        self.in_batches(
            len,
            |from, count| {
                // SAFETY: `count` keys of the map's size follow (`in_batches` keeps within `len`).
                unsafe { bpf::delete_batch(self.fd.as_fd(), keys[from * key_bytes..].as_ptr(), count) }
            },
            |index| self.delete(&keys[index * key_bytes..][..key_bytes]),
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
            // The entry that stopped the batch is tried alone; the rest goes on in batches.
            if done.error.is_some() && index < len {
                if let Err(error) = single(index) {
                    failures.push((index, error));
                }
                index += 1;
            }
        }
        failures
    }

    /// Walks the whole map. Entries that come or go meanwhile may or may not be seen.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), DatapathError> {
        let mut room = BATCH_ENTRIES;
        let mut keys = vec![0; room as usize * self.key_bytes];
        let mut values = vec![0; room as usize * self.value_bytes];
        let mut cursor = bpf::Cursor::new(self.key_bytes);
        loop {
            // SAFETY: both buffers hold `room` items of the map's sizes.
            let batch = unsafe {
                bpf::lookup_batch(self.fd.as_fd(), &mut cursor, keys.as_mut_ptr(), values.as_mut_ptr(), room)
            };
            let rows = keys.chunks_exact(self.key_bytes).zip(values.chunks_exact(self.value_bytes));
            for (key, value) in rows.take(batch.count as usize) {
                visit(key, value);
            }
            match batch.error.as_ref().map(|error| error.raw_os_error()) {
                None => {}
                Some(Some(libc::ENOENT)) => return Ok(()),
                Some(Some(libc::ENOSPC)) => {
                    room *= 2;
                    keys.resize(room as usize * self.key_bytes, 0);
                    values.resize(room as usize * self.value_bytes, 0);
                }
                Some(Some(libc::EINVAL | bpf::ENOTSUPP)) => return self.for_each_single(visit),
                Some(_) => {
                    return Err(self.error("dump", batch.error.unwrap_or_else(io::Error::last_os_error)));
                }
            }
        }
    }

    /// [`Self::for_each`] for kernels whose map type has no batch commands.
    pub(crate) fn for_each_single(&self, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), DatapathError> {
        let mut last: Option<Vec<u8>> = None;
        let mut value = vec![0; self.value_bytes];
        loop {
            let mut next = vec![0; self.key_bytes];
            let from = last.as_ref().map_or(std::ptr::null(), |key| key.as_ptr());
            // SAFETY: both keys have the map's size.
            match unsafe { bpf::next_key(self.fd.as_fd(), from, next.as_mut_ptr()) } {
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(self.error("dump", error)),
                Ok(()) => {}
            }
            if self.get(&next, &mut value)? {
                visit(&next, &value);
            }
            last = Some(next);
        }
    }

    fn error(&self, operation: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Map { map: self.name, operation, source }
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}
