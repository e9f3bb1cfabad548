//! Names of a lab's objects. Every name contains the lab's name, so that labs are isolated and can be taken down by
//! name alone.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The longest name of a lab: the longest path made from it must fit a unix socket's address (107 bytes).
pub const MAX_LAB_NAME_BYTES: usize = 24;

/// The name of one lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabName(String);

impl LabName {
    /// Checks a name: lower-case letters, digits and `-`, with a letter or digit at both ends.
    ///
    /// # Errors
    /// When the name is invalid; the text says what is allowed.
    pub fn new(text: &str) -> Result<Self> {
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let fits = !bytes.is_empty()
            && bytes.len() <= MAX_LAB_NAME_BYTES
            && edge(bytes[0])
            && edge(bytes[bytes.len() - 1])
            && bytes.iter().all(|&b| edge(b) || b == b'-');
        if !fits {
            bail!(
                "{text:?} is no name for a lab: use a-z, 0-9 and '-', beginning and ending with a letter or digit, at most {MAX_LAB_NAME_BYTES} characters"
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix of the names of all network namespaces of this lab. A lab's name has no two dots in sequence, so
    /// that no prefix is one of another lab's.
    pub fn namespace_prefix(&self) -> String {
        format!("wl.{}.", self.0)
    }

    /// The namespace of the underlay's bridge.
    pub fn underlay_namespace(&self) -> String {
        format!("{}underlay", self.namespace_prefix())
    }

    /// The namespace of a machine: a node, an etcd member, or a machine outside the fleet.
    pub fn machine_namespace(&self, machine: &str) -> String {
        format!("{}{machine}", self.namespace_prefix())
    }

    /// The namespace of an endpoint.
    pub fn endpoint_namespace(&self, node: &str, endpoint: &str) -> String {
        format!("{}{node}.{endpoint}", self.namespace_prefix())
    }

    /// The directory of the lab's state, configurations, logs and sockets.
    pub fn folder(&self) -> PathBuf {
        labs_folder().join(&self.0)
    }

    /// The directory of the etcd members' data: in memory, as Debian's etcd always syncs to disk.
    pub fn etcd_data_folder(&self) -> PathBuf {
        PathBuf::from("/dev/shm").join(format!("warren-lab.{}", self.0))
    }

    /// The directory on bpffs with the nodes' pins.
    pub fn pin_folder(&self) -> PathBuf {
        pins_folder().join(&self.0)
    }
}

/// The directory on bpffs with a directory for each lab.
pub fn pins_folder() -> PathBuf {
    PathBuf::from("/sys/fs/bpf/warren-lab")
}

/// The directory with a directory for each lab.
pub fn labs_folder() -> PathBuf {
    PathBuf::from("/run/warren-lab")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_names_are_validated() {
        for name in ["lab", "a", "lab-2", "0"] {
            assert_eq!(LabName::new(name).unwrap().as_str(), name);
        }
        for name in ["", "-a", "a-", "Lab", "a.b", "a/b", "..", &"x".repeat(MAX_LAB_NAME_BYTES + 1)] {
            assert!(LabName::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn lab_does_not_own_the_namespaces_of_another() {
        let lab = LabName::new("lab").unwrap();
        let other = LabName::new("lab-2").unwrap();
        assert!(!other.machine_namespace("n1").starts_with(&lab.namespace_prefix()));
    }
}
