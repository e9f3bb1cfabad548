//! One cgroup for each machine of a lab: every process of a machine can be found and killed, also if its parent is
//! gone. `exec` runs commands on a node or its endpoints in a child of the node's cgroup.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{name::LabName, wait};

/// How long killed processes may take to leave their cgroup: they only have to be scheduled once.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The mount point of cgroup2.
///
/// # Errors
/// When it is not mounted.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        })
        .next()
        .context("cgroup2 is not mounted: run deploy/setup.sh")
}

/// The directory with the cgroups of all labs.
///
/// # Errors
/// When cgroup2 is not mounted.
pub fn labs_folder() -> Result<PathBuf> {
    Ok(mount_point()?.join("warren-lab"))
}

/// The directory of a lab's cgroups.
///
/// # Errors
/// When cgroup2 is not mounted.
pub fn lab_folder(lab: &LabName) -> Result<PathBuf> {
    Ok(labs_folder()?.join(lab.as_str()))
}

/// Creates a machine's cgroup, or a child of it, if it does not exist.
///
/// # Errors
/// When the folder cannot be made.
pub fn create(lab: &LabName, machine: &str) -> Result<PathBuf> {
    let folder = lab_folder(lab)?.join(machine);
    fs::create_dir_all(&folder).with_context(|| format!("create cgroup {}", folder.display()))?;
    Ok(folder)
}

/// The processes in a cgroup.
///
/// # Errors
/// When the cgroup cannot be read; a missing one has no processes.
pub fn processes(folder: &Path) -> Result<Vec<i32>> {
    numbers(folder, "cgroup.procs")
}

/// The threads in a cgroup; none if it does not exist. A killed process may disappear before its last thread, which
/// keeps its files open and locked.
///
/// # Errors
/// When the cgroup cannot be read.
pub fn threads(folder: &Path) -> Result<Vec<i32>> {
    numbers(folder, "cgroup.threads")
}

fn numbers(folder: &Path, file: &str) -> Result<Vec<i32>> {
    match fs::read_to_string(folder.join(file)) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}/{file}", folder.display())),
    }
}

/// Kills everything in a cgroup and its children, waits until it is empty, and removes it; returns the number of
/// killed processes.
///
/// # Errors
/// When something in it does not die within [`KILL_LIMIT`].
pub fn destroy(folder: &Path) -> Result<usize> {
    if !folder.exists() {
        return Ok(0);
    }
    let mut killed = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            killed += destroy(&entry.path())?;
        }
    }
    let inside = processes(folder)?;
    killed += inside.len();
    if !inside.is_empty() {
        fs::write(folder.join("cgroup.kill"), "1")
            .with_context(|| format!("kill the processes in {}", folder.display()))?;
    }
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(killed),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(killed),
            Err(error) if Instant::now() >= deadline => {
                bail!("remove cgroup {}: {error}; still inside: {:?}", folder.display(), processes(folder)?);
            }
            Err(_) => wait::pause(),
        }
    }
}
