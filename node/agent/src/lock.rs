//! One agent for each state folder and run folder. (The datapath locks the folder of pins.)

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// The name of the lock file in the run folder.
pub const RUN_LOCK: &str = "warren.lock";

/// A lock that is held while the agent lives; the kernel releases it when the process ends, also by a signal.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds it.
    #[error(
        "another warrend{} already uses {what} {} on this node: stop it first, or give this one a {setting} of its own",
        pid.map_or(String::new(), |pid| format!(" (pid {pid})")), path.display()
    )]
    Held {
        /// What is locked.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The setting that chooses another.
        setting: &'static str,
        /// The holder's process id, if it has written one.
        pid: Option<u32>,
    },
    /// The file could not be created, read or written.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl Lock {
    /// Takes the lock `file`, which protects `subject`; the error names the latter.
    ///
    /// # Errors
    /// [`LockError::Held`] at once when another process has it.
    pub fn take(
        file: &Path,
        what: &'static str,
        subject: &Path,
        setting: &'static str,
    ) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: file.to_owned(), source };
        let mut handle = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(file)
            .map_err(io)?;
        // Read before locking, for the error: the holder may be gone a moment later.
        let mut holder = String::new();
        handle.read_to_string(&mut holder).map_err(io)?;
        let mut lock = match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = holder.trim().parse().ok();
                return Err(LockError::Held { what, path: subject.to_owned(), setting, pid });
            }
            Err((_, errno)) => return Err(io(errno.into())),
        };
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_names_its_holder_to_the_second() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lock");
        let first = Lock::take(&file, "state folder", folder.path(), "node.state_dir").unwrap();
        let error =
            Lock::take(&file, "state folder", folder.path(), "node.state_dir").unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains("node.state_dir"), "{error}");
        drop(first);
        Lock::take(&file, "state folder", folder.path(), "node.state_dir").unwrap();
    }
}
