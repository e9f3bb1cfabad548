//! One cgroup for each machine of a lab: whatever a machine started can be found and killed, also when the
//! process that started it is gone. What `exec` runs on a node or its endpoints is in one below the node's.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{name::LabName, wait};

/// How long killed processes may take to leave their cgroup: they only have to be scheduled once.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Where cgroup2 is mounted.
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

/// The folder with a folder for each lab.
///
/// # Errors
/// When cgroup2 is not mounted.
pub fn labs_folder() -> Result<PathBuf> {
    Ok(mount_point()?.join("warren-lab"))
}

/// The folder of a lab's cgroups.
///
/// # Errors
/// When cgroup2 is not mounted.
pub fn lab_folder(lab: &LabName) -> Result<PathBuf> {
    Ok(labs_folder()?.join(lab.as_str()))
}

/// Makes a machine's cgroup, or one below it, or takes the one that is there.
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
/// When it cannot be read; a missing one has none.
pub fn processes(folder: &Path) -> Result<Vec<i32>> {
    numbers(folder, "cgroup.procs")
}

/// The threads in a cgroup, none if it does not exist. When a process is killed, its number may go before its last
/// thread, and with that its files: what it had locked stays locked until then.
///
/// # Errors
/// When the kernel does not say.
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

/// Kills everything in a cgroup and below, waits until it is empty, and removes it; says how many processes
/// were killed.
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
