//! The folder on the BPF file system in which maps, links and programs outlive the agent.

use std::{
    fs,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::error::DatapathError;

/// The customary mount point of the BPF file system.
const BPFFS: &str = "/sys/fs/bpf";

/// The folders inside, in the order of removal: programs are detached before maps go.
pub(crate) const PARTS: [&str; 4] = ["links", "programs", "next", "maps"];

/// The folder with its parts. One process owns it at a time: the lock goes with the value, or with the
/// process however it ends.
#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    _lock: Lock,
}

/// The right to change a folder of pins.
#[derive(Debug)]
pub(crate) struct Lock {
    _folder: Flock<File>,
}

impl Lock {
    /// # Errors
    /// [`DatapathError::Conflict`] if another process has it.
    pub(crate) fn take(root: &Path) -> Result<Self, DatapathError> {
        let folder = File::open(root).map_err(|source| DatapathError::file("open", root, source))?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(folder) => Ok(Self { _folder: folder }),
            Err((_, Errno::EWOULDBLOCK)) => Err(DatapathError::Conflict(format!(
                "an agent is at work on {}: stop it first, or give this one another folder for its pins",
                root.display()
            ))),
            Err((_, error)) => Err(DatapathError::file("lock", root, error.into())),
        }
    }
}

impl Pins {
    /// Makes the folders and takes the lock; mounts the BPF file system at its customary place if it is not mounted.
    pub(crate) fn create(root: &Path) -> Result<Self, DatapathError> {
        if root.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .map_err(|error| DatapathError::NoBpffs { path: BPFFS.into(), reason: error.to_string() })?;
            tracing::info!(path = BPFFS, "BPF file system mounted");
        }
        let mount_point = root.ancestors().find(|path| path.exists()).unwrap_or(root);
        if !is_bpffs(mount_point) {
            return Err(DatapathError::NoBpffs {
                path: root.into(),
                reason: "it is another file system".into(),
            });
        }
        fs::create_dir_all(root).map_err(|source| DatapathError::file("make folder", root, source))?;
        let pins = Self { root: root.into(), _lock: Lock::take(root)? };
        for part in PARTS {
            let folder = pins.root.join(part);
            fs::create_dir_all(&folder)
                .map_err(|source| DatapathError::file("make folder", folder, source))?;
        }
        Ok(pins)
    }

    /// Maps on their way into [`Self::maps`]: what is found here was left by an agent that died on that way.
    pub(crate) fn next(&self) -> PathBuf {
        self.root.join("next")
    }

    /// Puts a map that is ready in the place of the former one of its name, in one step.
    pub(crate) fn take_over(&self, map: &str) -> Result<(), DatapathError> {
        let ready = self.next().join(map);
        fs::rename(&ready, self.maps().join(map))
            .map_err(|source| DatapathError::file("put into place", ready, source))
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }
}

/// Removes a pin; a pin that is not there counts as removed.
pub(crate) fn remove(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::file("remove", path, source))
        }
        _ => Ok(()),
    }
}

/// Names in a folder, sorted; none if there is no folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, DatapathError> {
    let fail = |source| DatapathError::file("list", folder, source);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}
