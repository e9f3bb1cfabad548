//! The repository's files.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

/// The repository's top folder, determined when the tests run: a target directory that several checkouts share may contain
/// tests that were compiled in another checkout.
pub fn root() -> PathBuf {
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR for tests");
    Path::new(&manifest_dir).ancestors().nth(2).expect("this crate is at deploy/xtask").to_path_buf()
}

/// All files of the repository except build output and symbolic links, relative to [`root`], sorted.
pub fn files() -> Vec<PathBuf> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
        for entry in entries.map(|entry| entry.expect("a folder's entry can be read")) {
            let path = entry.path();
            let file_type = entry.file_type().expect("a listed entry has a type");
            if file_type.is_dir() {
                // Cargo marks its output folders. Their name is no criterion: chaos-fuzz has a module `target`.
                if entry.file_name() != ".git" && !path.join("CACHEDIR.TAG").exists() {
                    folders.push(path);
                }
            } else if file_type.is_file() {
                found.push(path.strip_prefix(&root).expect("listed below the root").to_path_buf());
            }
        }
    }
    found.sort();
    found
}

/// A path's extension; empty if the path has none.
pub fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

/// The text of a file, by its path relative to [`root`].
pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}
