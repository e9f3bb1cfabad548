//! Watches the entries of a node's maps through their pins: also while no agent runs, and without cost for agents.
//!
//! Only maps with addresses as keys are watched, and only keys are read.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{Lab, wait};

/// The watched maps, and the offset of the address in their keys.
const MAPS: [(&str, usize); 4] =
    [("WARREN_IPC_V4", 0), ("WARREN_LPM_V4", 4), ("WARREN_NODE_V4", 0), ("WARREN_EP_V4", 0)];
/// Time between two reads: short enough to notice an entry that a wrong prune removes until it is repaired.
const PAUSE: Duration = Duration::from_millis(50);

/// An entry that has left a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostEntry {
    /// When its absence was noticed.
    pub at: Instant,
    /// The entry in words.
    pub entry: String,
}

#[derive(Debug, Default)]
struct Seen {
    /// Keys by node and map.
    keys: BTreeMap<(String, &'static str), BTreeSet<Vec<u8>>>,
    left: Vec<LostEntry>,
    /// Addresses whose entries may leave.
    deleted: BTreeSet<IpAddr>,
    /// Nodes that are being rebooted: their entries may leave.
    rebooting: BTreeSet<String>,
    failure: Option<String>,
}

/// Reads the maps repeatedly until dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching.
    pub fn start(lab: &Lab) -> Self {
        let nodes: Vec<(String, PathBuf)> =
            lab.spec().node_names().map(|node| (node.clone(), lab.pin_path(&node).join("maps"))).collect();
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    for (node, folder) in &nodes {
                        for (map, offset) in MAPS {
                            look(&seen, node, &folder.join(map), map, offset);
                        }
                    }
                    thread::sleep(PAUSE);
                }
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Sets whether entries of an address may leave.
    pub fn deleted(&self, address: IpAddr, is_deleted: bool) {
        let mut seen = self.lock();
        if is_deleted {
            seen.deleted.insert(address)
        } else {
            seen.deleted.remove(&address)
        };
    }

    /// Pauses watching a node during its reboot; afterwards watching starts anew.
    pub fn rebooting(&self, node: &str, is_rebooting: bool) {
        let mut seen = self.lock();
        seen.keys.retain(|(whose, _), _| whose != node);
        if is_rebooting {
            seen.rebooting.insert(node.to_owned())
        } else {
            seen.rebooting.remove(node)
        };
    }

    /// Waits until an address was seen in a map: from then on, its absence is noticed.
    ///
    /// # Errors
    /// When the address was not seen in time.
    pub fn wait_seen(&self, address: IpAddr, limit: Duration) -> Result<()> {
        wait::until(&format!("{address} in a kernel map"), limit, || {
            let seen = self.lock();
            let mut keys = seen.keys.values().flatten();
            anyhow::ensure!(keys.any(|key| address_at(key, 0) == Some(address)), "it was not seen");
            Ok(())
        })
    }

    /// The entries that left after a moment.
    ///
    /// # Errors
    /// When a map could not be read.
    pub fn left_since(&self, moment: Instant) -> Result<Vec<LostEntry>> {
        let seen = self.lock();
        match &seen.failure {
            Some(failure) => anyhow::bail!("the watch over the kernels' maps failed: {failure}"),
            None => Ok(seen.left.iter().filter(|left| left.at >= moment).cloned().collect()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("no holder of this lock panics")
}

fn look(seen: &Mutex<Seen>, node: &str, pin: &Path, map: &'static str, offset: usize) {
    if lock(seen).rebooting.contains(node) {
        return;
    }
    let found = read_keys(pin);
    let now = Instant::now();
    let mut seen = lock(seen);
    if seen.rebooting.contains(node) {
        return;
    }
    let (handle, keys) = match found {
        Ok(found) => found,
        Err(error) => {
            seen.failure.get_or_insert(format!("{}: {error:#}", pin.display()));
            return;
        }
    };
    let before = seen.keys.remove(&(node.to_owned(), map)).unwrap_or_default();
    for key in before.difference(&keys) {
        // The walk may miss an entry that is replaced meanwhile: only a lookup tells.
        if handle.as_ref().is_some_and(|handle| handle.has(key)) {
            continue;
        }
        let address = address_at(key, offset);
        if !address.is_some_and(|address| seen.deleted.contains(&address)) {
            let entry = match address {
                Some(address) => format!("{node}: {address} left {map}"),
                None => format!("{node}: {key:02x?} left {map}"),
            };
            seen.left.push(LostEntry { at: now, entry });
        }
    }
    seen.keys.insert((node.to_owned(), map), keys);
}

fn address_at(key: &[u8], offset: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = key.get(offset..offset + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

/// A pinned map.
struct Handle {
    map: OwnedFd,
    value_bytes: usize,
}

/// The used parts of `union bpf_attr`, with their place and size (<linux/bpf.h>).
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
}

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: each caller's structure lays out the part of the attributes that its command reads, with its size; what
    // it points to outlives the call and is as large as the command writes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// All keys of a pinned map; none if there is no pin.
fn read_keys(pin: &Path) -> Result<(Option<Handle>, BTreeSet<Vec<u8>>)> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, ..ObjectAttr::default() };
    let raw = match bpf(OBJ_GET, &mut attr) {
        Ok(raw) => raw,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, BTreeSet::new())),
        Err(error) => return Err(error).context("open the pinned map"),
    };
    // SAFETY: the descriptor is new, and owned by nobody else.
    let map = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut info = MapInfo::default();
    let mut attr =
        InfoAttr { bpf_fd: raw as u32, info_len: size_of::<MapInfo>() as u32, info: &raw mut info as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).context("ask for the map's sizes")?;
    let mut keys = BTreeSet::new();
    let mut last: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0; info.key_size as usize];
        let mut attr = ElementAttr {
            map_fd: map.as_raw_fd() as u32,
            key: last.as_ref().map_or(0, |key| key.as_ptr() as u64),
            value_or_next: next.as_mut_ptr() as u64,
            ..ElementAttr::default()
        };
        match bpf(MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error).context("read the next key"),
        }
        // The key is known: the previous one was deleted, and the kernel has started again from the beginning.
        let known = !keys.insert(next.clone());
        if known {
            break;
        }
        last = Some(next);
    }
    Ok((Some(Handle { map, value_bytes: info.value_size as usize }), keys))
}

impl Handle {
    fn has(&self, key: &[u8]) -> bool {
        let mut value = vec![0u8; self.value_bytes];
        let mut attr = ElementAttr {
            map_fd: self.map.as_raw_fd() as u32,
            key: key.as_ptr() as u64,
            value_or_next: value.as_mut_ptr() as u64,
            ..ElementAttr::default()
        };
        bpf(MAP_LOOKUP_ELEM, &mut attr).is_ok()
    }
}
