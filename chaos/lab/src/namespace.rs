//! Named network namespaces and the cables between them, by `ip`: a lab's plumbing has no speed to win.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail};

/// Where named namespaces are.
pub const NAMESPACES: &str = "/run/netns";

/// The path that names a namespace.
pub fn path(namespace: &str) -> PathBuf {
    Path::new(NAMESPACES).join(namespace)
}

/// Whether a namespace is there.
pub fn exists(namespace: &str) -> bool {
    path(namespace).exists()
}

/// Opens a namespace, to be entered by a child.
///
/// # Errors
/// When it is not there.
pub fn open(namespace: &str) -> Result<File> {
    File::open(path(namespace)).with_context(|| format!("open network namespace {namespace}"))
}

/// Runs a function on a thread of its own inside a namespace. Sockets that it makes stay in that namespace,
/// wherever they are used.
///
/// # Errors
/// When the namespace cannot be entered, and the function's own.
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

/// Makes a namespace with its loopback up.
///
/// # Errors
/// When it is there already, among others.
pub fn create(namespace: &str) -> Result<()> {
    ip(["netns", "add", namespace])?;
    ip(["-n", namespace, "link", "set", "lo", "up"])
}

/// Deletes a namespace and every device in it; says whether it was there.
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

/// The names of all namespaces that begin with a text, sorted.
///
/// # Errors
/// When the folder cannot be read; a missing folder is an empty list.
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

/// Makes a bridge that is up.
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

/// What may wait in a machine for a neighbour that does not answer, as the kernel counts it: some 20 small packets.
///
/// The kernel answers the echo requests of all namespaces of a processor through one socket, whose buffer holds some 150
/// answers; with its default (212,992 bytes) one neighbour holds 280. Machines of their own have a socket each; here
/// those that wait for one lab node would be missing to the pings of all others (`IcmpOutErrors` counts them).
const NEIGHBOUR_QUEUE_BYTES: u32 = 16 << 10;

/// Plugs a machine into a bridge: `eth0` with an Ethernet and an IP address in the machine's namespace, a port
/// named after the machine in the bridge's.
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

/// Runs `ip`; what it says on its error output becomes the error.
///
/// # Errors
/// When it is not installed or exits with something else than 0.
pub fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    // In a process group of its own: Ctrl-C is for whoever calls it.
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
