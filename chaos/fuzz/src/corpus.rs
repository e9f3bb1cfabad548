//! Inputs that are worth keeping: those that a fuzzer found.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Target;

/// Where a target's inputs lie.
pub fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(target.name)
}

/// The inputs in a target's folder, each with its name, sorted by it. None where there is no folder.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn read(target: &Target) -> io::Result<Vec<(String, Vec<u8>)>> {
    let folder = folder(target);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut inputs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        inputs.push((name, fs::read(&path)?));
    }
    inputs.sort();
    Ok(inputs)
}
