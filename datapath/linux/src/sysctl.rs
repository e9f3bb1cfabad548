//! The kernel settings that we need, each with its reason. `/proc/sys/net` shows the namespace of the calling thread: the
//! whole agent runs in the namespace of its node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use datapath_plan::Masquerade;

use crate::{device::is_named_as_ours, error::DatapathError};

/// The settings of the node as a whole. A cleanup leaves them: other software may rely on them by then, and a reboot resets
/// them.
pub(crate) fn prepare_node(masquerade: Option<&Masquerade>) -> Result<(), DatapathError> {
    // The stack must forward packets that the programs pass to it (action `stack`).
    write("net/ipv4/ip_forward", "1")?;
    filter_reverse_paths_by_device()?;
    // The kernel must not give ports of the masquerade to the node's sockets.
    match masquerade {
        Some(masquerade) => reserve(masquerade.first_port, masquerade.last_port),
        None => Ok(()),
    }
}

const ALL_REVERSE_PATHS: &str = "net/ipv4/conf/all/rp_filter";

/// Whether reverse path filtering is on for our devices whatever their own setting. The kernel takes the greater of a
/// device's value and that of `all`. For a device without an address, such as an endpoint's, loose (2) drops as much as
/// strict (1).
pub(crate) fn filters_all_reverse_paths() -> Result<bool, DatapathError> {
    Ok(read(ALL_REVERSE_PATHS)? != "0")
}

/// Moves the value of `all` to every other device and to the default of new ones: each is as strict as before.
fn filter_reverse_paths_by_device() -> Result<(), DatapathError> {
    let all = read(ALL_REVERSE_PATHS)?;
    if all == "0" {
        return Ok(());
    }
    for device in crate::pins::names(Path::new("/proc/sys/net/ipv4/conf"))? {
        let key = format!("net/ipv4/conf/{device}/rp_filter");
        if device == "all" || is_named_as_ours(&device) {
            continue;
        }
        match read(&key) {
            // Values are single digits.
            Ok(own) if own < all => write(&key, &all)?,
            // The device may be gone by now.
            _ => {}
        }
    }
    write(ALL_REVERSE_PATHS, "0")
}

/// Adds a range to the reserved local ports; other ranges stay.
fn reserve(first: u16, last: u16) -> Result<(), DatapathError> {
    const KEY: &str = "net/ipv4/ip_local_reserved_ports";
    let present = read(KEY)?;
    let parse = |range: &str| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some((from.parse::<u16>().ok()?, to.parse::<u16>().ok()?))
    };
    if present.split(',').filter_map(parse).any(|(from, to)| from <= first && last <= to) {
        return Ok(());
    }
    let gap = if present.is_empty() { "" } else { "," };
    write(KEY, &format!("{present}{gap}{first}-{last}"))
}

/// The settings of each of our devices.
pub(crate) fn prepare_device(name: &str) -> Result<(), DatapathError> {
    // Routes to endpoints lead to `warren_host` and not to the endpoints' devices: reverse path filtering would drop all
    // packets of endpoints. The programs check sources.
    write(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
    // No link-local IPv6 address, router solicitation or MLD report: the programs would count each as a
    // dropped packet.
    match write(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1") {
        Err(DatapathError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read(key: &str) -> Result<String, DatapathError> {
    let path = PathBuf::from("/proc/sys").join(key);
    let present = fs::read_to_string(&path).map_err(|source| DatapathError::file("read", &path, source))?;
    Ok(present.trim_end().to_owned())
}

fn write(key: &str, value: &str) -> Result<(), DatapathError> {
    if read(key)? == value {
        return Ok(());
    }
    let path = PathBuf::from("/proc/sys").join(key);
    fs::write(&path, value).map_err(|source| DatapathError::file("write", path, source))
}
