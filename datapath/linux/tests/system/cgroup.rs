//! A cgroup of a test's own, and sockets that belong to it: a socket is of the cgroup of the process that makes it,
//! wherever it is used.

use std::{
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::stage::Namespace;

/// A cgroup that goes with its handle.
pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    /// `None`, after saying so, where there is no cgroup2 or none can be made.
    pub fn new(name: &str) -> Option<Self> {
        let Some(root) = datapath_linux::cgroup_root() else {
            println!("skipped: cgroup2 is not mounted");
            return None;
        };
        let path = root.join(format!("warren-test-{name}"));
        if let Err(error) = fs::create_dir(&path) {
            println!("skipped: no cgroup can be made: {error}");
            return None;
        }
        Some(Self { path })
    }

    /// A socket of IPv4 (`libc::SOCK_STREAM`, `libc::SOCK_DGRAM`) in a network namespace.
    pub fn socket(&self, namespace: &Namespace, kind: libc::c_int) -> OwnedFd {
        let procs = fs::OpenOptions::new().write(true).open(self.path.join("cgroup.procs")).expect("open");
        let netns = fs::File::open(namespace.path()).expect("the namespace is there");
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null());
        // SAFETY: raw system calls on descriptors that the closure owns; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::write(&procs, b"0")?;
                nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
                let made = libc::socket(libc::AF_INET, kind, 0);
                if made < 0 || libc::dup2(made, libc::STDIN_FILENO) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().expect("start sleep");
        // SAFETY: numbers only; what the kernel gives is ours alone.
        let socket = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, child.id(), 0) as i32;
            assert!(process >= 0, "{}", std::io::Error::last_os_error());
            let process = OwnedFd::from_raw_fd(process);
            let socket = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), libc::STDIN_FILENO, 0);
            assert!(socket >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(socket as i32)
        };
        child.kill().expect("end sleep");
        child.wait().expect("its end");
        socket
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
