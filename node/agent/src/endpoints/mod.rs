//! Endpoint files: the names, labels and attachments of this node's endpoints, which the kernel does not hold.
//!
//! `<state_dir>/endpoints/<id>`, one file (`sealed.rs`) for each endpoint. The file is written before the endpoint is
//! attached and removed after the endpoint is detached, and a caller is answered only after that: an agent that is
//! killed at any moment is followed by one that knows the names of all endpoints in the kernel, with or without a store.
//! Files are not synced, since a machine that loses power loses its endpoints too.

mod keeper;

use std::{collections::BTreeMap, fs, io, path::Path};

use datapath_plan::EndpointId;
use node_core::SavedEndpoint;
use tracing::{info, warn};

use crate::sealed::{Form, SealError};

pub use keeper::{EndpointKeeper, Writer};

/// The largest has a path of 4 kB and 64 labels of some hundred bytes each.
pub const FORM: Form = Form { magic: *b"WRNENDP\n", version: 2, max_payload_bytes: 64 << 10 };

/// Writes an endpoint's file, or with `None` removes it.
fn write(folder: &Path, id: EndpointId, saved: Option<&SavedEndpoint>) -> Result<(), SealError> {
    let path = folder.join(id.to_string());
    match saved {
        Some(saved) => match FORM.write(&path, saved, false) {
            Err(SealError::File(error)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                FORM.write(&path, saved, false)
            }
            result => result,
        },
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
    }
}

/// Reads the files of the previous agent, in the order of ids. A file that cannot be used is moved to `<id>.bad` with a
/// warning; its endpoint is known by its device until the store tells its name.
pub fn load(folder: &Path) -> Vec<SavedEndpoint> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(folder = %folder.display(), %error, "endpoint files cannot be read");
            return Vec::new();
        }
    };
    let mut endpoints = BTreeMap::new();
    for path in files.flatten().map(|file| file.path()) {
        // Other files are unfinished writes, and those moved aside.
        let Some(id) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        match FORM.read::<SavedEndpoint>(&path) {
            Ok(saved) if saved.id == EndpointId(id) => drop(endpoints.insert(id, saved)),
            Ok(saved) => set_aside(&path, &format!("it belongs to endpoint {}", saved.id)),
            Err(error) => set_aside(&path, &error.to_string()),
        }
    }
    info!(endpoints = endpoints.len(), "endpoint files read");
    endpoints.into_values().collect()
}

fn set_aside(path: &Path, error: &str) {
    let aside = path.with_extension("bad");
    let moved = fs::rename(path, &aside).is_ok();
    warn!(path = %path.display(), error, aside = %aside.display(), moved, "endpoint file not used");
}

#[cfg(test)]
mod tests;
