//! Network namespaces: opening one by path, and talking netlink inside it without entering it for longer
//! than it takes to open a socket.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};
use rtnetlink::sys::{Socket, TokioSocket, protocols::NETLINK_ROUTE};

use crate::{error::DatapathError, netlink::Netlink};

nix::ioctl_none_bad!(ns_get_nstype, nix::request_code_none!(0xb7, 0x3));

/// Where network namespaces are found: by name, then by process.
pub(crate) fn paths() -> Vec<PathBuf> {
    let entries = |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries("/run/netns").map(|entry| entry.path());
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let processes = entries("/proc").filter(|entry| entry.file_name().to_str().is_some_and(is_process));
    named.chain(processes.map(|entry| entry.path().join("ns/net"))).collect()
}

/// A network namespace that was there when it was opened; kept alive by this handle.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens `/run/netns/NAME`, `/proc/PID/ns/net` or the like.
    ///
    /// # Errors
    /// [`DatapathError::NamespaceGone`] if there is nothing, or no network namespace, at the path;
    /// [`DatapathError::Conflict`] if it is the node's own.
    pub(crate) fn open(path: &Path) -> Result<Self, DatapathError> {
        let gone = |reason: String| DatapathError::NamespaceGone { path: path.into(), reason };
        let file = File::open(path).map_err(|error| gone(error.to_string()))?;
        // SAFETY: NS_GET_NSTYPE (ioctl_ns(2)) takes no argument and only reads the descriptor.
        let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
        if kind != Ok(libc::CLONE_NEWNET) {
            return Err(gone("is no network namespace".into()));
        }
        let own_path = Path::new("/proc/thread-self/ns/net");
        let own =
            std::fs::metadata(own_path).map_err(|source| DatapathError::file("look at", own_path, source))?;
        let there = file.metadata().map_err(|error| gone(error.to_string()))?;
        if (own.dev(), own.ino()) == (there.dev(), there.ino()) {
            let text = format!(
                "{} is the node's own network namespace: an endpoint needs one of its own",
                path.display()
            );
            return Err(DatapathError::Conflict(text));
        }
        Ok(Self { file, path: path.into() })
    }

    pub(crate) fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// A netlink connection inside. The socket is opened by a thread of its own, since setns(2) is per thread and
    /// a worker of the runtime must never change its namespace.
    pub(crate) fn netlink(&self) -> Result<Netlink, DatapathError> {
        let fail = |source: io::Error| DatapathError::Netlink {
            operation: format!("open netlink in {}", self.path.display()),
            source,
        };
        let opened = thread::scope(|scope| {
            let open = || -> io::Result<Socket> {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Socket::new(NETLINK_ROUTE)
            };
            scope.spawn(open).join()
        });
        let socket =
            opened.unwrap_or_else(|_| Err(io::Error::other("the opening thread panicked"))).map_err(fail)?;
        // SAFETY: the descriptor is a netlink socket that nobody else owns.
        Netlink::over(unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) })
    }
}
