//! Removes everything of ours and nothing else, also when no agent runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    config::LinuxConfig,
    device::{HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE},
    error::DatapathError,
    netlink::{Link, Netlink},
    pins,
    pins::Lock,
    route,
};

/// An object of ours, and the outcome of its removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CleanupStep {
    /// What: `device wrn7`, `route 10.1.0.0/24`, `pin /sys/fs/bpf/warren/maps/…`.
    pub what: String,
    /// Whether the object was removed; false in a dry run and after a failure.
    pub done: bool,
    /// The failure of the removal.
    pub error: Option<String>,
}

/// Removes routes, devices and pins of ours in the calling thread's namespace, and goes on past failures. `dry_run`: only
/// lists them. Repeating it finds nothing. Programs end with their last device and pin.
///
/// Ours are: devices of our group with one of our names, routes of the main table with our protocol number, and
/// whatever is pinned in our folders.
///
/// # Errors
/// [`DatapathError::Conflict`] while an agent is at work on the pins; otherwise only if devices or routes cannot
/// be listed at all.
pub async fn cleanup(config: &LinuxConfig, dry_run: bool) -> Result<Vec<CleanupStep>, DatapathError> {
    let _lock = if config.pin_root.exists() && !dry_run { Some(Lock::take(&config.pin_root)?) } else { None };
    let netlink = Netlink::here()?;
    let mut steps = Vec::new();
    // Routes first: most would go with their device, and be missing from the report.
    for route in route::list(&netlink, config.route_protocol).await? {
        let removal = route::delete(&netlink, config.route_protocol, route.destination);
        let result = if dry_run { Ok(()) } else { removal.await };
        steps.push(step(format!("route {}", route.destination), dry_run, result));
    }
    for link in netlink.links().await?.iter().filter(|link| is_target(link)) {
        let result = if dry_run { Ok(()) } else { netlink.delete(link).await };
        steps.push(step(format!("device {}", link.name), dry_run, result));
    }
    for path in pinned(&config.pin_root)? {
        let result = if dry_run { Ok(()) } else { remove_pin(&path) };
        steps.push(step(format!("pin {}", path.display()), dry_run, result));
    }
    Ok(steps)
}

/// Deleting one end of a pair deletes the other: the second deletion then finds nothing, which is no failure.
fn is_target(link: &Link) -> bool {
    let named = [HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE].contains(&link.name.as_str()) && link.is_ours();
    named || link.endpoint().is_some()
}

/// Folders after what is in them.
fn pinned(root: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let mut paths = Vec::new();
    for part in pins::PARTS {
        let folder = root.join(part);
        paths.extend(pins::names(&folder)?.iter().map(|name| folder.join(name)));
        paths.push(folder);
    }
    paths.push(root.into());
    paths.retain(|path| path.exists());
    Ok(paths)
}

fn remove_pin(path: &Path) -> Result<(), DatapathError> {
    let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    removed.map_err(|source| DatapathError::file("remove", path, source))
}

fn step(what: String, dry_run: bool, result: Result<(), DatapathError>) -> CleanupStep {
    CleanupStep { what, done: !dry_run && result.is_ok(), error: result.err().map(|error| error.chain()) }
}
