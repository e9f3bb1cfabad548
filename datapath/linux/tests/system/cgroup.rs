//! A cgroup for a test, and sockets that belong to it: a socket belongs to the cgroup of the process that creates it,
//! whichever process uses it.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};

use crate::stage::Namespace;

/// A cgroup, removed when dropped.
pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    /// `None`, with the reason printed, if there is no cgroup2 or no cgroup can be created.
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
        let cgroup = Self { path };
        if let Err(error) = cgroup.programs() {
            println!("skipped: no programs at cgroups (CONFIG_CGROUP_BPF): {error}");
            return None;
        }
        Some(cgroup)
    }

    /// The ids of the programs that are attached to its connect4 hook.
    pub fn programs(&self) -> io::Result<Vec<u32>> {
        let cgroup = fs::File::open(&self.path)?;
        let mut ids = vec![0u32; 64];
        // SAFETY: the union holds plain integers, for which zero is valid.
        let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
        attributes.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
        attributes.query.attach_type = bpf_attach_type::BPF_CGROUP_INET4_CONNECT as u32;
        attributes.query.prog_ids = ids.as_mut_ptr() as u64;
        attributes.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
        // SAFETY: `prog_ids` has room for `prog_cnt` ids.
        let failed = unsafe {
            libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_PROG_QUERY, &raw mut attributes, size_of::<bpf_attr>())
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: written by the kernel.
        ids.truncate(unsafe { attributes.query.__bindgen_anon_2.prog_cnt } as usize);
        Ok(ids)
    }

    /// A socket of IPv4 (`libc::SOCK_STREAM`, `libc::SOCK_DGRAM`) in a network namespace.
    pub fn socket(&self, namespace: &Namespace, kind: libc::c_int) -> OwnedFd {
        let procs = fs::OpenOptions::new().write(true).open(self.path.join("cgroup.procs")).expect("open");
        let netns = fs::File::open(namespace.path()).expect("the namespace is there");
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null());
        // SAFETY: between fork and exec, the closure makes raw system calls on descriptors that it owns, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::write(&procs, b"0")?;
                nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
                let made = libc::socket(libc::AF_INET, kind, 0);
                if made < 0 || libc::dup2(made, libc::STDIN_FILENO) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().expect("start sleep");
        // SAFETY: the calls take integers only, and the returned descriptors are owned by nobody else.
        let socket = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, child.id(), 0) as i32;
            assert!(process >= 0, "{}", io::Error::last_os_error());
            let process = OwnedFd::from_raw_fd(process);
            let socket = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), libc::STDIN_FILENO, 0);
            assert!(socket >= 0, "{}", io::Error::last_os_error());
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
