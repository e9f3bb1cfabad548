//! The identity of this machine and of this start of the agent.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use identity::NodeName;

use crate::config::Config;

/// One start of the agent on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The node's name: as configured, or the host's.
    pub node: NodeName,
    /// The machine's id: as configured, or `/etc/machine-id`.
    pub machine_id: String,
    /// The kernel's boot id, which differs after each boot.
    pub boot_id: String,
    /// Start time in ms since 1970, higher than at any earlier start.
    pub incarnation: u64,
}

/// Why the identity could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host name is no valid node name.
    #[error("the host name is no node name: {0}; set node.name")]
    HostName(String),
    /// There is no machine id.
    #[error("read /etc/machine-id: {0}; make one with systemd-machine-id-setup, or set node.machine_id")]
    MachineId(String),
    /// A file could not be read or written.
    #[error("{verb} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The incarnation file holds no number.
    #[error("{} holds no number: delete it if this node's gossip may rest for a minute", path.display())]
    Incarnation {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the identity, and stores the new incarnation in the state folder.
///
/// # Errors
/// [`MachineError`]
pub fn learn(config: &Config) -> Result<Machine, MachineError> {
    let node = match &config.node.name {
        Some(name) => name.clone(),
        None => {
            let host =
                nix::unistd::gethostname().map_err(|error| MachineError::HostName(error.to_string()))?;
            NodeName::new(&host.to_string_lossy())
                .map_err(|error| MachineError::HostName(error.to_string()))?
        }
    };
    let machine_id = match &config.node.machine_id {
        Some(id) => id.clone(),
        None => read_machine_id(Path::new("/etc/machine-id"))?,
    };
    let boot_path = Path::new("/proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(boot_path)
        .map_err(|source| MachineError::File { verb: "read", path: boot_path.to_owned(), source })?
        .trim()
        .to_owned();
    let incarnation = next_incarnation(&config.node.state_dir.join("incarnation"), wall())?;
    Ok(Machine { node, machine_id, boot_id, incarnation })
}

/// Time since 1970; zero where the clock is before that.
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn read_machine_id(path: &Path) -> Result<String, MachineError> {
    let text = fs::read_to_string(path).map_err(|error| MachineError::MachineId(error.to_string()))?;
    match text.trim() {
        "" | "uninitialized" => Err(MachineError::MachineId("it is empty".to_owned())),
        id => Ok(id.to_owned()),
    }
}

/// The wall clock in ms, or the last incarnation plus one where the clock went back: gossip and fencing rely on a rising
/// incarnation. The file is replaced before the incarnation is used, so that a crash never lets it fall.
fn next_incarnation(path: &Path, now: Duration) -> Result<u64, MachineError> {
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let last = match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(|_| MachineError::Incarnation { path: path.to_owned() })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(source) => return Err(MachineError::File { verb: "read", path: path.to_owned(), source }),
    };
    let next = now_ms.max(last + 1);
    let new = path.with_extension("new");
    fs::write(&new, format!("{next}\n"))
        .and_then(|()| fs::File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .map_err(|source| MachineError::File { verb: "write", path: path.to_owned(), source })?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnation_rises_though_the_clock_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("incarnation");
        let at = |ms| next_incarnation(&path, Duration::from_millis(ms)).unwrap();
        assert_eq!(
            [at(1_000), at(2_000), at(500), at(2_001), at(9_000)],
            [1_000, 2_000, 2_001, 2_002, 9_000]
        );
        fs::write(&path, "soon").unwrap();
        assert!(matches!(next_incarnation(&path, Duration::ZERO), Err(MachineError::Incarnation { .. })));
    }

    #[test]
    fn machine_id_that_is_empty_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine-id");
        assert!(read_machine_id(&path).is_err());
        fs::write(&path, "uninitialized\n").unwrap();
        assert!(read_machine_id(&path).unwrap_err().to_string().contains("node.machine_id"));
        fs::write(&path, "0123\n").unwrap();
        assert_eq!(read_machine_id(&path).unwrap(), "0123");
    }
}
