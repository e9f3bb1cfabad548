//! Failures of the kernel interface, and their meaning for a plan.

use std::{io, path::PathBuf};

use datapath_plan::{EndpointId, OpError, OpErrorKind};

/// A failure of the datapath. The text says what to do where the user can do something.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The process may not load programs or change the network.
    #[error("needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN: {0}")]
    NotPermitted(String),
    /// There is no BPF file system to pin to.
    #[error("{} is not on a BPF file system ({reason}): mount one with `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    NoBpffs {
        /// The folder that was searched.
        path: PathBuf,
        /// What is there instead.
        reason: String,
    },
    /// The object could not be loaded; aya's text carries the verifier's log.
    #[error("load the kernel programs")]
    Load(#[source] aya::EbpfError),
    /// A program could not be loaded, attached or queried.
    #[error("{operation} program {program}")]
    Program {
        /// The program's name.
        program: String,
        /// The operation.
        operation: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pinned map is not what this build needs.
    #[error("map {map}: {text}")]
    Layout {
        /// The map.
        map: String,
        /// What is different.
        text: String,
    },
    /// A map could not be read or written.
    #[error("{operation} map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// The operation.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("{operation}")]
    Netlink {
        /// The operation.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file, a sysctl or a pin could not be read or written.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The network namespace of an endpoint is not there.
    #[error("network namespace {}: {reason}; create it before the endpoint, or delete the endpoint", path.display())]
    NamespaceGone {
        /// Its path.
        path: PathBuf,
        /// What is there instead.
        reason: String,
    },
    /// An endpoint has no device, and its attachment is no longer known.
    #[error("endpoint {0}: its network namespace is not known any more: delete it and add it again")]
    Unattached(EndpointId),
    /// Another owner has the name.
    #[error("{0}")]
    Conflict(String),
    /// The operation needs devices that are not there (any more).
    #[error("{0}")]
    NotReady(String),
    /// A value that this version cannot carry, such as an IPv6 address.
    #[error("{0}")]
    Unsupported(String),
}

impl DatapathError {
    /// The kind of failure, for the author of the plan.
    pub fn kind(&self) -> OpErrorKind {
        match self {
            Self::NamespaceGone { .. } | Self::Unattached(_) => OpErrorKind::NamespaceGone,
            Self::Conflict(_) => OpErrorKind::Conflict,
            Self::Map { source, .. } if matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
                OpErrorKind::Capacity
            }
            _ => OpErrorKind::Transient,
        }
    }

    /// The whole chain of causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// A failure to load. A kernel in lockdown answers EPERM, where the verifier answers EACCES or EINVAL.
    pub(crate) fn load(error: aya::EbpfError) -> Self {
        match is_refusal(&error) {
            true => Self::refused(),
            false => Self::Load(error),
        }
    }

    /// As [`Self::load`], for one program.
    pub(crate) fn program(
        program: &str,
        operation: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        if is_refusal(&source) {
            return Self::refused();
        }
        Self::Program { program: program.into(), operation: operation.into(), source: Box::new(source) }
    }

    fn refused() -> Self {
        Self::NotPermitted(
            "the kernel refused bpf(2); look for lockdown in /sys/kernel/security/lockdown".into(),
        )
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { operation, path: path.into(), source }
    }
}

fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.raw_os_error() == Some(libc::EPERM))
}

impl From<DatapathError> for OpError {
    fn from(error: DatapathError) -> Self {
        Self { kind: error.kind(), text: error.chain() }
    }
}
