//! Named network namespaces and the veth pairs between them, by `ip`: speed does not matter here.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail};

/// The directory of named namespaces.
pub const NAMESPACES: &str = "/run/netns";

/// The path of a named namespace.
pub fn path(namespace: &str) -> PathBuf {
    Path::new(NAMESPACES).join(namespace)
}

/// Whether a namespace exists.
pub fn exists(namespace: &str) -> bool {
    path(namespace).exists()
}

/// Opens a namespace, for a child process to enter.
///
/// # Errors
/// When the namespace does not exist.
pub fn open(namespace: &str) -> Result<File> {
    File::open(path(namespace)).with_context(|| format!("open network namespace {namespace}"))
}

/// Runs a function on a new thread inside a namespace. Sockets that the function creates stay in that namespace.
///
/// # Errors
/// When the namespace cannot be entered, and the errors of the function.
pub fn inside<T: Send>(namespace: &str, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let netns = open(namespace)?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter network namespace {namespace}"))?;
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Creates a namespace, with its loopback device up.
///
/// # Errors
/// When `ip` fails, for example because the namespace exists.
pub fn create(namespace: &str) -> Result<()> {
    ip(["netns", "add", namespace])?;
    ip(["-n", namespace, "link", "set", "lo", "up"])
}

/// Deletes a namespace and every device in it; returns whether it existed.
///
/// # Errors
/// When `ip` cannot delete it.
pub fn delete(namespace: &str) -> Result<bool> {
    if !exists(namespace) {
        return Ok(false);
    }
    ip(["netns", "delete", namespace])?;
    Ok(true)
}

/// The names of all namespaces with a prefix, sorted.
///
/// # Errors
/// When the directory cannot be read; a missing directory is an empty list.
pub fn list(prefix: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(NAMESPACES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("read {NAMESPACES}")),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    Ok(names)
}

/// Creates a bridge that is up.
///
/// # Errors
/// When `ip` fails.
pub fn create_bridge(namespace: &str, name: &str) -> Result<()> {
    ip([
        "-n",
        namespace,
        "link",
        "add",
        name,
        "type",
        "bridge",
        "forward_delay",
        "0",
        "mcast_snooping",
        "0",
    ])?;
    ip(["-n", namespace, "link", "set", name, "up"])
}

/// How many bytes a machine may queue for a neighbour that does not answer, as the kernel counts them: some 20 small
/// packets.
///
/// The kernel sends the echo replies of all namespaces of a CPU through one socket, whose buffer holds some 150
/// replies; with the default limit (212,992 bytes) one neighbour holds 280. Real machines have a socket each; here
/// the replies that wait for one lab node would be missing to the pings of all others (`IcmpOutErrors` counts them).
const NEIGHBOUR_QUEUE_BYTES: u32 = 16 << 10;

/// Connects a machine to a bridge: `eth0` with an Ethernet and an IP address in the machine's namespace, and a port
/// with the machine's name in the bridge's.
///
/// # Errors
/// When `ip` fails, or the kernel does not take a setting.
pub fn plug(
    underlay: &str,
    bridge: &str,
    port: &str,
    machine: &str,
    mac: [u8; 6],
    address: &str,
) -> Result<()> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let peer = ["peer", "name", "eth0", "address", &mac, "netns", machine];
    ip([&["-n", underlay, "link", "add", port, "type", "veth"][..], &peer].concat())?;
    ip(["-n", underlay, "link", "set", port, "master", bridge, "up"])?;
    ip(["-n", machine, "address", "add", address, "dev", "eth0"])?;
    inside(machine, || {
        let setting = "/proc/sys/net/ipv4/neigh/eth0/unres_qlen_bytes";
        std::fs::write(setting, NEIGHBOUR_QUEUE_BYTES.to_string()).with_context(|| format!("set {setting}"))
    })?;
    ip(["-n", machine, "link", "set", "eth0", "up"])
}

/// Runs `ip`; its error output becomes the error.
///
/// # Errors
/// When `ip` is not installed, or exits with a code other than 0.
pub fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    // In its own process group: Ctrl-C is for the caller.
    let output = Command::new("ip")
        .args(&arguments)
        .process_group(0)
        .output()
        .context("run ip (package iproute2; deploy/setup.sh installs it)")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
