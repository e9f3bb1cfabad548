//! The snapshot on disk: what lets the next agent serve without etcd and without peers.
//!
//! `<state_dir>/snapshot` is a header (magic, version, length, CRC-32C; integers little-endian) and the bincode of one
//! [`Snapshot`]. One version of the file is one shape of that type: another version is not read. The file is written
//! beside its place and renamed, so there is always a whole one. Never does it keep the agent from starting: a file
//! that cannot be used is moved to `snapshot.bad`, with a warning.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use node_core::Snapshot;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// First in the file.
const MAGIC: [u8; 8] = *b"WRNSNAP\n";

/// Of the type [`Snapshot`] with all that it holds: raise it with every change there.
const VERSION: u32 = 2;

/// Magic, version, length, checksum.
pub const HEADER_BYTES: usize = 8 + 4 + 8 + 4;

/// A payload longer than this is neither written nor read: 100,000 endpoints take 3 MB, so this is a fleet of a few
/// million. Without a limit a hostile length could ask for all memory there is.
const MAX_PAYLOAD_BYTES: usize = 128 << 20;

/// Why a file, or a snapshot, is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read or written.
    #[error("read or write it: {0}")]
    File(#[from] io::Error),
    /// The file begins with something else.
    #[error("it is no snapshot of Warren's")]
    Foreign,
    /// Another build wrote it.
    #[error("its version is {0}, this agent reads {VERSION}")]
    Version(u32),
    /// It was cut off, or something follows it.
    #[error("its length is {found} bytes, it says {said}")]
    Length {
        /// The bytes that there are.
        found: u64,
        /// The bytes that there should be.
        said: u64,
    },
    /// Its bytes are not those that were written.
    #[error("it is damaged: the checksum differs")]
    Checksum,
    /// What lies under the checksum is no snapshot.
    #[error("decode it: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// A snapshot that has no bincode: a bug.
    #[error("encode it: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// Longer than any fleet's.
    #[error("it has {0} bytes, at most {MAX_PAYLOAD_BYTES} are kept")]
    TooLong(u64),
}

/// Where the node's snapshots go. Only the newest one counts. Writing ends when this is dropped, with the last one.
pub struct SnapshotKeeper {
    newest: watch::Sender<Option<Arc<Snapshot>>>,
}

impl SnapshotKeeper {
    /// A way to the file, and the task that writes it.
    pub fn new(path: PathBuf) -> (Self, impl Future<Output = ()> + Send) {
        let (newest, mut news) = watch::channel(None::<Arc<Snapshot>>);
        let write = async move {
            // A value that came before the end is still seen.
            while news.changed().await.is_ok() {
                let Some(snapshot) = news.borrow_and_update().clone() else { continue };
                let target = path.clone();
                match tokio::task::spawn_blocking(move || write(&target, &snapshot)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        error!(path = %path.display(), %error, "snapshot not written; tried again with the next change");
                    }
                    Err(error) => error!(%error, "snapshot not written: a bug"),
                }
            }
        };
        (Self { newest }, write)
    }

    /// Has a snapshot written soon. Returns at once.
    pub fn keep(&self, snapshot: Box<Snapshot>) {
        self.newest.send_replace(Some(Arc::from(snapshot)));
    }
}

/// What the former agent left; `None` if there is nothing, or nothing that can be used.
pub fn load(path: &Path) -> Option<Box<Snapshot>> {
    match read(path) {
        Ok(snapshot) => {
            info!(revision = snapshot.revision.0, endpoints = snapshot.endpoints.len(), "snapshot read");
            Some(Box::new(snapshot))
        }
        Err(SnapshotError::File(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let aside = path.with_extension("bad");
            let moved = fs::rename(path, &aside).is_ok();
            warn!(path = %path.display(), %error, aside = %aside.display(), moved, "snapshot not used");
            None
        }
    }
}

fn read(path: &Path) -> Result<Snapshot, SnapshotError> {
    let length = fs::metadata(path)?.len();
    if length > (HEADER_BYTES + MAX_PAYLOAD_BYTES) as u64 {
        return Err(SnapshotError::TooLong(length));
    }
    decode(&fs::read(path)?)
}

/// A crash at any moment leaves the former file or the new one.
fn write(path: &Path, snapshot: &Snapshot) -> Result<(), SnapshotError> {
    let bytes = encode(snapshot)?;
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself is on disk only when its folder is.
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

/// The bytes of the file.
///
/// # Errors
/// [`SnapshotError::TooLong`].
pub fn encode(snapshot: &Snapshot) -> Result<Vec<u8>, SnapshotError> {
    let payload = bincode::serde::encode_to_vec(snapshot, codec())?;
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(SnapshotError::TooLong(payload.len() as u64));
    }
    Ok(seal(&payload))
}

/// A file with this payload under a right header.
pub fn seal(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(crc32c::crc32c(payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// Reads the bytes of a file. They may come from anywhere: what they cost is bounded by their number.
///
/// # Errors
/// Why they are no snapshot of this version.
pub fn decode(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(SnapshotError::Foreign)?;
    if *magic != MAGIC {
        return Err(SnapshotError::Foreign);
    }
    let short = SnapshotError::Length { found: bytes.len() as u64, said: HEADER_BYTES as u64 };
    let Some((version, rest)) = rest.split_first_chunk() else { return Err(short) };
    if u32::from_le_bytes(*version) != VERSION {
        return Err(SnapshotError::Version(u32::from_le_bytes(*version)));
    }
    let Some((said, rest)) = rest.split_first_chunk() else { return Err(short) };
    let Some((checksum, payload)) = rest.split_first_chunk() else { return Err(short) };
    let (found, said) = (payload.len() as u64, u64::from_le_bytes(*said));
    if found != said {
        return Err(SnapshotError::Length { found, said });
    }
    if crc32c::crc32c(payload) != u32::from_le_bytes(*checksum) {
        return Err(SnapshotError::Checksum);
    }
    let (snapshot, used) = bincode::serde::decode_from_slice(payload, codec())?;
    if used != payload.len() {
        return Err(SnapshotError::Length { found, said: used as u64 });
    }
    Ok(snapshot)
}

fn codec() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_PAYLOAD_BYTES>()
}

#[cfg(test)]
mod tests {
    use datapath_plan::{Attachment, EndpointId, Mac};
    use kvstore_schema::{Revision, StoreIdentity, record::ClaimState};
    use node_core::{SavedCidr, SavedEndpoint, SavedIdentity, SavedNode, SavedRecord};

    use super::*;

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
                }],
            )],
            endpoints: vec![SavedEndpoint {
                id: EndpointId(1),
                name: "web".parse().unwrap(),
                labels: "app=web".parse().unwrap(),
                attachment: Some(Attachment::Netns {
                    path: "/run/netns/web".into(),
                    interface: "eth0".to_owned(),
                }),
                address,
                mac: Mac([2, 0, 0, 0, 0, 1]),
                host_mac: Mac([2, 0, 0, 0, 0, 2]),
                ready: true,
            }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert!(load(&path).is_none(), "the first start");
        write(&path, &snapshot()).unwrap();
        assert_eq!(load(&path).as_deref(), Some(&snapshot()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused() {
        let bytes = encode(&snapshot()).unwrap();
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
        assert!(matches!(decode(&longer), Err(SnapshotError::Length { .. })));
    }

    /// Behind a right checksum: what a bug of ours, or somebody with root, could write.
    #[test]
    fn what_lies_under_a_right_checksum_is_refused_without_harm() {
        let payload = encode(&snapshot()).unwrap().split_off(HEADER_BYTES);
        assert_eq!(decode(&seal(&payload)).unwrap(), snapshot());
        for length in 0..payload.len() {
            decode(&seal(&payload[..length])).expect_err("cut off");
        }
        let mut longer = payload.clone();
        longer.push(0);
        assert!(
            matches!(decode(&seal(&longer)), Err(SnapshotError::Length { .. })),
            "not all of it was read"
        );
        // Each place may say that a text or a list of any length follows (253: a length of 8 bytes).
        for index in 0..payload.len() {
            let mut hostile = payload[..index].to_vec();
            hostile.push(253);
            hostile.extend([0xff; 8]);
            hostile.extend(&payload[index..]);
            // Where it fell into a text's middle the rest still may be a snapshot; what counts is to come back.
            drop(decode(&seal(&hostile)));
        }
        let first_length = [&[253][..], &u64::MAX.to_le_bytes(), &payload].concat();
        decode(&seal(&first_length)).expect_err("a text longer than all memory");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let mut newer = encode(&snapshot()).unwrap();
        newer[8] += 1;
        for bytes in [b"something else".to_vec(), newer] {
            fs::write(&path, &bytes).unwrap();
            assert!(load(&path).is_none());
            assert!(!path.exists());
            assert_eq!(fs::read(path.with_extension("bad")).unwrap(), bytes);
        }
    }

    #[tokio::test]
    async fn the_last_snapshot_is_written_before_the_end() {
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
