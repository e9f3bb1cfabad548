//! The snapshot on disk, with which the next agent serves without etcd and without peers.
//!
//! `<state_dir>/snapshot` holds one [`Snapshot`] (`sealed.rs`). It never keeps the agent from starting: a file that cannot
//! be used is moved to `snapshot.bad`, with a warning.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use node_core::Snapshot;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::sealed::{Form, SealError};

/// 100,000 endpoints take 3 MB, so the limit is that of a fleet of a few million.
pub const FORM: Form = Form { magic: *b"WRNSNAP\n", version: 6, max_payload_bytes: 128 << 20 };

/// Requests writes of snapshots. Only the newest is written. The task ends when this is dropped, after the last write.
pub struct SnapshotKeeper {
    /// The snapshot to be written. The task takes it out, since that of a large fleet takes several MB.
    newest: Arc<Mutex<Option<Box<Snapshot>>>>,
    news: mpsc::Sender<()>,
}

impl SnapshotKeeper {
    /// The keeper, and the task that writes the file.
    pub fn new(path: PathBuf) -> (Self, impl Future<Output = ()> + Send) {
        // One message is enough, since it only says that there is a snapshot.
        let (news, mut inbox) = mpsc::channel(1);
        let keeper = Self { newest: Arc::default(), news };
        let newest = keeper.newest.clone();
        let write = async move {
            while inbox.recv().await.is_some() {
                let Some(snapshot) = lock(&newest).take() else { continue };
                let target = path.clone();
                match tokio::task::spawn_blocking(move || FORM.write(&target, &*snapshot, true)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        error!(path = %path.display(), %error, "snapshot not written; tried again with the next change");
                    }
                    Err(error) => error!(%error, "snapshot not written: a bug"),
                }
            }
        };
        (keeper, write)
    }

    /// Requests that a snapshot be written. Returns at once.
    pub fn keep(&self, snapshot: Box<Snapshot>) {
        *lock(&self.newest) = Some(snapshot);
        // Full: the task will see this snapshot. Closed: the agent ends.
        let _ = self.news.try_send(());
    }
}

fn lock(newest: &Mutex<Option<Box<Snapshot>>>) -> MutexGuard<'_, Option<Box<Snapshot>>> {
    newest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The previous agent's snapshot; `None` if there is none, or none that can be used.
pub fn load(path: &Path) -> Option<Box<Snapshot>> {
    match FORM.read::<Snapshot>(path) {
        Ok(snapshot) => {
            info!(revision = snapshot.revision.0, nodes = snapshot.nodes.len(), "snapshot read");
            Some(Box::new(snapshot))
        }
        Err(SealError::File(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let aside = path.with_extension("bad");
            let moved = fs::rename(path, &aside).is_ok();
            warn!(path = %path.display(), %error, aside = %aside.display(), moved, "snapshot not used");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvstore_schema::{
        Revision, StoreIdentity,
        record::{ClaimState, Record},
        service::ServiceRecord,
    };
    use node_core::{SavedCidr, SavedIdentity, SavedNode, SavedRecord};

    use super::*;
    use crate::sealed::HEADER_BYTES;

    fn decode(bytes: &[u8]) -> Result<Snapshot, SealError> {
        FORM.decode(bytes)
    }

    fn encode() -> Vec<u8> {
        FORM.encode(&snapshot()).unwrap()
    }

    fn snapshot() -> Snapshot {
        let (node, address) = ("n1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let cidr: ipnetwork::IpNetwork = "10.0.0.0/24".parse().unwrap();
        Snapshot {
            fleet: "test".parse().unwrap(),
            fleet_id: "f00".to_owned(),
            node,
            machine_id: "machine".to_owned(),
            store: StoreIdentity(7),
            revision: Revision(42),
            life: Default::default(),
            mark: None,
            heard_at: std::time::Duration::from_secs(7),
            nodes: vec![SavedNode {
                name: "n1".parse().unwrap(),
                underlay: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
                gateway: Some("10.0.0.1".parse().unwrap()),
                gossip_port: 7946,
                labels: "rack=r1".parse().unwrap(),
                machine_id: "machine".to_owned(),
                incarnation: 3,
                agent_version: "0".to_owned(),
            }],
            cidrs: vec![SavedCidr {
                cidr,
                node: "n1".parse().unwrap(),
                state: ClaimState::Live,
                epoch: Revision(5),
                since: None,
            }],
            identities: vec![SavedIdentity {
                id: identity::Identity::FLEET_MIN,
                labels: "app=web".parse().unwrap(),
                referenced: true,
            }],
            records: vec![(
                "n1".parse().unwrap(),
                vec![SavedRecord {
                    address,
                    identity: identity::Identity::FLEET_MIN,
                    name: "web".parse().unwrap(),
                    terminating: false,
                }],
            )],
            services: vec![("web".parse().unwrap(), Arc::new(service()))],
        }
    }

    fn service() -> ServiceRecord {
        let record = br#"{"v":1,"spec":{"ports":[{"port":80}],"selector":{}},"virtual_ip":"10.201.0.5"}"#;
        ServiceRecord::decode(record).unwrap()
    }

    #[test]
    fn snapshot_is_read_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert!(load(&path).is_none(), "the first start");
        FORM.write(&path, &snapshot(), true).unwrap();
        assert_eq!(load(&path).as_deref(), Some(&snapshot()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn snapshot_that_is_cut_off_or_changed_is_refused() {
        let bytes = encode();
        assert_eq!(decode(&bytes).unwrap(), snapshot());
        for length in 0..bytes.len() {
            decode(&bytes[..length]).expect_err("cut off");
        }
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[index] ^= 1 << bit;
                decode(&changed).expect_err("changed");
            }
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(matches!(decode(&longer), Err(SealError::Length { .. })));
    }

    /// With a valid checksum, as a bug or an attacker with root could write it.
    #[test]
    fn snapshot_payload_under_a_valid_checksum_is_decoded_without_harm() {
        let payload = encode().split_off(HEADER_BYTES);
        assert_eq!(decode(&FORM.seal(&payload)).unwrap(), snapshot());
        for length in 0..payload.len() {
            decode(&FORM.seal(&payload[..length])).expect_err("cut off");
        }
        let mut longer = payload.clone();
        longer.push(0);
        assert!(
            matches!(decode(&FORM.seal(&longer)), Err(SealError::Length { .. })),
            "not all of it was read"
        );
        // Any place may begin a text or list of any length (253: a length of 8 bytes follows).
        for index in 0..payload.len() {
            let mut hostile = payload[..index].to_vec();
            hostile.push(253);
            hostile.extend([0xff; 8]);
            hostile.extend(&payload[index..]);
            // Within a text the rest may still be a snapshot. The decoder must only return.
            drop(decode(&FORM.seal(&hostile)));
        }
        let first_length = [&[253][..], &u64::MAX.to_le_bytes(), &payload].concat();
        decode(&FORM.seal(&first_length)).expect_err("a text longer than all memory");
    }

    #[test]
    fn snapshot_that_cannot_be_used_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let mut newer = encode();
        newer[8] += 1;
        for bytes in [b"something else".to_vec(), newer] {
            fs::write(&path, &bytes).unwrap();
            assert!(load(&path).is_none());
            assert!(!path.exists());
            assert_eq!(fs::read(path.with_extension("bad")).unwrap(), bytes);
        }
    }

    #[tokio::test]
    async fn snapshot_keeper_writes_the_last_one_before_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let (keeper, write) = SnapshotKeeper::new(path.clone());
        for revision in 1..=50 {
            keeper.keep(Box::new(Snapshot { revision: Revision(revision), ..snapshot() }));
        }
        drop(keeper);
        write.await;
        assert_eq!(load(&path).unwrap().revision, Revision(50));
    }
}
