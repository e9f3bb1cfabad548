//! Attaching programs to a cgroup: by links that are pinned, adopted and replaced in place, like the links of devices.
//! Programs of other owners at the same hooks keep running.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_attach_type;

use crate::{
    bpf,
    error::DatapathError,
    hook::Hooks,
    object::{self, SocketProgram},
    pins,
};

/// The prefix of a pin's name; the program's name follows.
const PIN_PREFIX: &str = "cgroup-";

/// The mount point of the first cgroup2 in the mount table.
pub fn cgroup_root() -> Option<PathBuf> {
    root_in(&fs::read_to_string("/proc/self/mounts").ok()?)
}

fn root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        // Of the characters that the kernel escapes there, only blanks are common in paths.
        (kind == "cgroup2").then(|| PathBuf::from(place.replace("\\040", " ")))
    })
}

impl SocketProgram {
    const fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Connect => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
            Self::SendMsg => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
            Self::RecvMsg => bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
            Self::GetPeerName => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
            Self::Release => bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE,
        }
    }

    fn pin(self) -> String {
        format!("{PIN_PREFIX}{}", self.name())
    }

    fn fail(self, operation: impl Into<String>, source: io::Error) -> DatapathError {
        // Not `DatapathError::program`: EPERM here is another program's, which wants the cgroup for itself.
        DatapathError::Program {
            program: self.name().into(),
            operation: operation.into(),
            source: Box::new(source),
        }
    }
}

/// Whether a pinned link is that of a socket program.
pub(crate) fn is_pin(name: &str) -> bool {
    SocketProgram::ALL.iter().any(|program| program.pin() == name)
}

impl Hooks {
    /// Loads the socket programs and attaches them to a cgroup; the programs of an earlier agent are replaced in place. Attaches
    /// all of them or, after a failure, none.
    ///
    /// # Errors
    /// Whatever the kernel lacks, or refuses.
    pub(crate) fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), DatapathError> {
        let attached = SocketProgram::ALL.iter().try_for_each(|program| self.attach_socket(*program, cgroup));
        if attached.is_err() {
            self.detach_sockets()?;
        }
        attached
    }

    fn attach_socket(&mut self, program: SocketProgram, cgroup: &Path) -> Result<(), DatapathError> {
        let loaded = self
            .ebpf
            .program_mut(program.name())
            .ok_or_else(|| program.fail("find", io::ErrorKind::NotFound.into()))?;
        if loaded.fd().is_err() {
            object::load_socket(loaded)
                .map_err(|error| DatapathError::program(program.name(), "load", error))?;
        }
        let fd = loaded.fd().map_err(|error| DatapathError::program(program.name(), "load", error))?.as_fd();
        let file = File::open(cgroup).map_err(|source| DatapathError::file("open cgroup", cgroup, source))?;
        let id =
            file.metadata().map_err(|source| DatapathError::file("look at cgroup", cgroup, source))?.ino();
        let pin = self.pins.links().join(program.pin());
        let fail = |operation: &str| {
            let operation = format!("{operation} {}", cgroup.display());
            move |source| program.fail(operation, source)
        };
        match bpf::pinned(&pin) {
            Ok(link) => {
                let info = bpf::cgroup_link(link.as_fd()).map_err(fail("ask the link at"))?;
                if info.cgroup_id == id {
                    match bpf::update_link(link.as_fd(), fd) {
                        Ok(()) => return Ok(()),
                        // The cgroup was deleted and made again.
                        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                        Err(error) => return Err(fail("replace at")(error)),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail("adopt the link at")(error)),
        }
        let link = bpf::create_link(fd, file.as_fd(), program.attach_type()).map_err(fail("attach to"))?;
        // The former link is of another cgroup: the new link has taken over.
        pins::remove(&pin)?;
        bpf::pin(link.as_fd(), &pin).map_err(fail("pin the link at"))
    }

    /// Detaches the programs from every cgroup.
    pub(crate) fn detach_sockets(&self) -> Result<(), DatapathError> {
        // The programs that translate go first.
        SocketProgram::ALL
            .iter()
            .rev()
            .try_for_each(|program| pins::remove(&self.pins.links().join(program.pin())))
    }

    /// Whether our present program is attached to a cgroup.
    pub(crate) fn is_at_sockets(&self, program: SocketProgram, cgroup: &Path) -> bool {
        let asked = || -> Option<bool> {
            let own = self.ebpf.program(program.name())?.info().ok()?.id();
            let link = bpf::pinned(&self.pins.links().join(program.pin())).ok()?;
            let info = bpf::cgroup_link(link.as_fd()).ok()?;
            Some(info.program_id == own && info.cgroup_id == fs::metadata(cgroup).ok()?.ino())
        };
        asked().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cgroup2_is_the_root() {
        let check = |mounts, expected: Option<&str>| assert_eq!(root_in(mounts), expected.map(PathBuf::from));
        check("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Some("/sys/fs/cgroup"));
        check("cgroup /a cgroup rw 0 0\nnone /my\\040groups cgroup2 rw 0 0\n", Some("/my groups"));
        check("bpf /cgroup2 bpf rw 0 0\nshort\n", None);
    }
}
