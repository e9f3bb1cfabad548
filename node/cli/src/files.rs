//! Manifests from files, folders and the standard input.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use node_api::{MAX_MANIFEST_BYTES, Manifest};

/// What a file of manifests in a folder is called.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Reads all manifests, in the order in which they are named; in a folder, by the names of its files.
///
/// # Errors
/// All mistakes in all files, each with its file and line; also a thing that is there twice, or none at all.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let mut mistakes = Vec::new();
    for path in paths {
        for file in expand(path)? {
            let text = text(&file)?;
            match Manifest::parse_all(&text) {
                Ok(found) => manifests.extend(found),
                Err(error) => {
                    let lines = error.to_string();
                    mistakes.extend(lines.lines().map(|line| format!("{}: {line}", file.display())));
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    for Manifest { metadata, .. } in &manifests {
        if !names.insert(&metadata.name) {
            mistakes.push(format!("service {} is there twice", metadata.name));
        }
    }
    if !mistakes.is_empty() {
        bail!(mistakes.join("\nwarren: "));
    }
    if manifests.is_empty() {
        bail!(
            "no manifest in {}",
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(manifests)
}

fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("read folder {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.with_context(|| format!("read folder {}", path.display()))?.path();
        let known = file.extension().is_some_and(|name| EXTENSIONS.iter().any(|known| name == *known));
        if known && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn text(path: &Path) -> Result<String> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(fs::File::open(path).with_context(|| format!("open {}", path.display()))?)
    };
    // One byte more than is read says that there is more; the parser then says how much it takes.
    let mut text = String::new();
    source
        .take(MAX_MANIFEST_BYTES as u64 + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}
