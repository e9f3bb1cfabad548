//! Taking a lab down by its name alone, whatever state it is in.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{
    cgroup,
    name::{LabName, labs_folder, pins_folder},
    namespace, wait,
};

/// How long children that a killed `up` was about to start may hold a lock: they close it as soon as they run.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Locks a lab for bringing it up or taking it down, as long as the result lives.
///
/// # Errors
/// When another program holds the lock, or there is no such lab.
pub(crate) fn lock(name: &LabName) -> Result<Flock<File>> {
    let folder = name.folder();
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        let file = File::open(&folder).with_context(|| format!("open {}", folder.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => wait::pause(),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another warren-lab brings lab {} up or takes it down: let it finish, or interrupt it",
                name.as_str()
            ),
            Err((_, error)) => return Err(error).with_context(|| format!("lock {}", folder.display())),
        }
    }
}

/// Removes everything of a lab by its name alone, and goes on past failures. Returns what was removed; repeating it
/// removes nothing more.
///
/// # Errors
/// With everything that could not be removed.
pub fn take_down(name: &LabName) -> Result<Vec<String>> {
    let _lock = if name.folder().exists() { Some(lock(name)?) } else { None };
    let mut removed = Vec::new();
    let mut failures = Vec::new();
    let mut note = |what: &str, result: Result<usize>| match result {
        Ok(0) => {}
        Ok(count) => removed.push(format!("{count} {what}")),
        Err(error) => failures.push(format!("{what}: {error:#}")),
    };
    note("processes", cgroup::lab_folder(name).and_then(|folder| cgroup::destroy(&folder)));
    note("network namespaces", delete_namespaces(&name.namespace_prefix()));
    note("folder of pins", remove_folder(&name.pin_folder()));
    note("folder of etcd data", remove_folder(&name.etcd_data_folder()));
    // The lab's own directory goes last, and only when nothing is left that must be found by the lab's name.
    if failures.is_empty() {
        match remove_folder(&name.folder()) {
            Ok(0) => {}
            Ok(_) => removed.push("1 folder of state and logs".to_owned()),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    for shared in [Ok(labs_folder()), Ok(pins_folder()), cgroup::labs_folder()].into_iter().flatten() {
        // The directory goes with the last lab; until then it is not empty.
        let _still_used = fs::remove_dir(shared);
    }
    if failures.is_empty() { Ok(removed) } else { bail!("lab {}: {}", name.as_str(), failures.join("; ")) }
}

fn delete_namespaces(prefix: &str) -> Result<usize> {
    let all = namespace::list(prefix)?;
    let failures: Vec<String> =
        all.iter().filter_map(|one| namespace::delete(one).err().map(|error| format!("{error:#}"))).collect();
    if failures.is_empty() { Ok(all.len()) } else { bail!("{}", failures.join("; ")) }
}

fn remove_folder(path: &Path) -> Result<usize> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}
