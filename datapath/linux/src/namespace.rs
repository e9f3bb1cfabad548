//! Network namespaces: opening one by path, and netlink inside it without entering it for longer than it takes to open a
//! socket.

use std::{
    fs::{File, OpenOptions},
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        statfs::{NSFS_MAGIC, fstatfs},
    },
};
use rtnetlink::sys::{Socket, TokioSocket, protocols::NETLINK_ROUTE};

use crate::{error::DatapathError, netlink::Netlink};

/// How long opening a path may take. A path on a file system that hangs would take for ever.
const OPEN_WITHIN: Duration = Duration::from_secs(2);
/// The most paths whose opening has not ended yet, each with a thread.
const MAX_OPENING: usize = 8;
static OPENING: AtomicUsize = AtomicUsize::new(0);

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// `asm-generic/socket.h`, since Linux 5.14; not in libc for all systems.
const SO_NETNS_COOKIE: libc::c_int = 71;

nix::ioctl_none_bad!(ns_get_nstype, nix::request_code_none!(0xb7, 0x3));

/// Where network namespaces are found: by name, then by process.
pub(crate) fn paths() -> Vec<PathBuf> {
    let entries = |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries("/run/netns").map(|entry| entry.path());
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let processes = entries("/proc").filter(|entry| entry.file_name().to_str().is_some_and(is_process));
    named.chain(processes.map(|entry| entry.path().join("ns/net"))).collect()
}

/// Opens a namespace's file on a thread of its own, with a deadline.
fn open_within(path: &Path) -> io::Result<File> {
    if OPENING.fetch_add(1, Ordering::Relaxed) >= MAX_OPENING {
        OPENING.fetch_sub(1, Ordering::Relaxed);
        return Err(io::Error::other("opening other paths hangs"));
    }
    let (result, opened) = sync_channel(1);
    let path = path.to_owned();
    thread::spawn(move || {
        let file = open_nsfs(&path);
        OPENING.fetch_sub(1, Ordering::Relaxed);
        // The caller may have stopped waiting.
        let _ = result.send(file);
    });
    opened.recv_timeout(OPEN_WITHIN).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("cannot be opened within {OPEN_WITHIN:?}")))
    })
}

/// Opens a file of nsfs and no other: opening a FIFO blocks, and opening a device may do anything.
fn open_nsfs(path: &Path) -> io::Result<File> {
    // With O_PATH the file itself is not opened.
    let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    if fstatfs(&handle)?.filesystem_type() != NSFS_MAGIC {
        return Err(io::Error::other("is no network namespace"));
    }
    File::open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// What tells a network namespace from all others of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The kernel's, never used again.
    pub cookie: u64,
    /// Of its file.
    pub inode: u32,
}

/// Of the node's own namespace: the calling thread's.
pub(crate) fn own_mark() -> Result<Mark, DatapathError> {
    mark_here().map_err(|source| DatapathError::file("ask for the cookie of", OWN, source))
}

fn mark_here() -> io::Result<Mark> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the option is a number of eight bytes, and there is room for it.
    let failed = unsafe {
        libc::getsockopt(
            any.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    let inode = u32::try_from(std::fs::metadata(OWN)?.ino()).map_err(io::Error::other)?;
    Ok(Mark { cookie, inode })
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
        let file = open_within(path).map_err(|error| gone(error.to_string()))?;
        // SAFETY: NS_GET_NSTYPE (ioctl_ns(2)) takes no argument and only reads the descriptor.
        let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
        if kind != Ok(libc::CLONE_NEWNET) {
            return Err(gone("is no network namespace".into()));
        }
        let own_path = Path::new(OWN);
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

    /// Runs something inside, on a thread of its own: setns(2) is per thread, and a worker of the runtime must never
    /// change its namespace.
    pub(crate) fn enter<T: Send>(&self, run: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                run()
            };
            scope.spawn(inside).join().unwrap_or_else(|_| Err(io::Error::other("the thread inside panicked")))
        })
    }

    /// By what the kernel and the file system tell it from others.
    pub(crate) fn mark(&self) -> Result<Mark, DatapathError> {
        self.enter(mark_here)
            .map_err(|source| DatapathError::file("ask for the cookie of", &self.path, source))
    }

    /// A netlink connection inside.
    pub(crate) fn netlink(&self) -> Result<Netlink, DatapathError> {
        let fail = |source: io::Error| DatapathError::Netlink {
            operation: format!("open netlink in {}", self.path.display()),
            source,
        };
        let socket = self.enter(|| Socket::new(NETLINK_ROUTE)).map_err(fail)?;
        // SAFETY: the descriptor is a netlink socket that nobody else owns.
        Netlink::over(unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) })
    }
}

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn namespace_path_of_another_kind_of_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).expect("a link");
        for path in
            [fifo.as_path(), &link, folder.path(), Path::new("/dev/zero"), Path::new("/proc/self/ns/pid")]
        {
            let error = Namespace::open(path).expect_err("no network namespace").to_string();
            assert!(error.contains("is no network namespace"), "{error}");
        }
        let error = Namespace::open(&folder.path().join("gone")).expect_err("nothing there").to_string();
        assert!(error.contains("No such file"), "{error}");
        assert!(matches!(Namespace::open(Path::new(OWN)), Err(DatapathError::Conflict(_))));
    }
}
