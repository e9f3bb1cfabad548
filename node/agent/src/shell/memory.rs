//! The store of a single node: in memory, with a file in the state folder, so that a restarted agent knows its
//! endpoints by name.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use kvstore_schema::{ListPage, Prefix, StoreIdentity};
use kvstore_store::{MemState, MemStore, Store, WatchEvent, list_all};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::error;

/// The file's version; no other is read.
const FILE_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    v: u32,
    listing: ListPage,
}

/// Opens the store with the file's content; empty if there is no file.
///
/// # Errors
/// When the file exists and cannot be read: its content must not be given up silently.
pub fn open(path: &Path) -> anyhow::Result<MemStore> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(MemStore::new(StoreIdentity(rand::random())));
        }
        Err(error) => return Err(error).with_context(|| format!("read the store in {}", path.display())),
    };
    let saved = serde_json::from_slice::<Saved>(&bytes)
        .map_err(anyhow::Error::from)
        .and_then(|saved| {
            anyhow::ensure!(saved.v == FILE_VERSION, "it is of version {}", saved.v);
            Ok(saved)
        })
        .with_context(|| {
            format!("read the store in {}; without the file the node begins anew", path.display())
        })?;
    Ok(MemStore::with_state(MemState::loaded(saved.listing)))
}

/// Writes the file after each change, and once more when the agent stops. Changes just before a crash may be missing; the
/// next agent finds its endpoints in the kernel and in their files.
pub async fn keep(store: Arc<dyn Store>, path: PathBuf, stop: CancellationToken) {
    let everything = Prefix::from_raw("/");
    loop {
        let listing = match list_all(&*store, &everything).await {
            Ok(listing) => listing,
            Err(error) => unreachable!("a store in memory without faults answers: {error}"),
        };
        let next = listing.revision.next();
        if let Err(error) = write(&path, listing) {
            error!(path = %path.display(), %error, "store is not saved");
        }
        if stop.is_cancelled() {
            return;
        }
        // A watch that fails or ends only leads to one more write.
        let Ok(mut watch) = store.watch(&everything, next).await else { continue };
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = watch.events.recv() => match event {
                    Some(WatchEvent::Progress { .. }) => {}
                    Some(WatchEvent::Changes { .. } | WatchEvent::Ended(_)) | None => break,
                },
            }
        }
    }
}

fn write(path: &Path, listing: ListPage) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(&Saved { v: FILE_VERSION, listing })?)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use kvstore_schema::{Key, KvOp, Txn};

    use super::*;

    #[tokio::test]
    async fn memory_store_is_the_same_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.json");
        let store: Arc<dyn Store> = Arc::new(open(&path).unwrap().client());
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(store.clone(), path.clone(), stop.clone()));
        let put = KvOp::Put { key: Key::from_raw("/a"), value: b"1".as_slice().into(), lease: None };
        store.txn(Txn::new().then(put)).await.unwrap();
        stop.cancel();
        keeper.await.unwrap();
        let before = list_all(&*store, &Prefix::from_raw("/")).await.unwrap();
        let after = open(&path).unwrap().client();
        assert_eq!(list_all(&after, &Prefix::from_raw("/")).await.unwrap(), before);
    }

    #[test]
    fn memory_store_file_that_is_damaged_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.json");
        fs::write(&path, "{\"v\":1").unwrap();
        let error = format!("{:#}", open(&path).unwrap_err());
        assert!(error.contains("store.json") && error.contains("begins anew"), "{error}");
    }
}
