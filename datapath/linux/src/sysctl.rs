//! The few kernel settings that we need, each with its reason. `/proc/sys/net` shows the namespace of the
//! calling thread: the whole agent runs in its node's.

use std::{fs, io, path::PathBuf};

use crate::error::DatapathError;

/// What the node as a whole needs.
pub(crate) fn prepare_node() -> Result<(), DatapathError> {
    // Packets that the programs hand to the stack for elsewhere (action `stack`) must be forwarded.
    write("net/ipv4/ip_forward", "1")
}

/// What each of our devices needs.
pub(crate) fn prepare_device(name: &str) -> Result<(), DatapathError> {
    // Routes to endpoints lead to `warren_host`, not to the device that their packets come in by: strict
    // reverse path filtering would drop them. The programs check sources.
    write(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
    // No link-local IPv6 address, router solicitation or MLD report: the programs would count each as a
    // dropped packet.
    match write(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1") {
        Err(DatapathError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write(key: &str, value: &str) -> Result<(), DatapathError> {
    let path = PathBuf::from("/proc/sys").join(key);
    let present = fs::read_to_string(&path).map_err(|source| DatapathError::file("read", &path, source))?;
    if present.trim_end() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| DatapathError::file("write", path, source))
}
