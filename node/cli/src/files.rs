//! Manifests from files, folders and the standard input.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use node_api::{MAX_MANIFEST_BYTES, Manifest, Metadata};

/// What a file of manifests in a folder is called.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The name that stands for the standard input.
const STANDARD_INPUT: &str = "-";

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
                Ok(found) => manifests.extend(found.into_iter().map(|manifest| (shown(&file), manifest))),
                Err(error) => {
                    let lines = error.to_string();
                    mistakes.extend(lines.lines().map(|line| format!("{}: {line}", shown(&file))));
                }
            }
        }
    }
    let mut places = BTreeMap::new();
    for (place, Manifest { metadata: Metadata { name }, .. }) in &manifests {
        if let Some(first) = places.insert(name, place) {
            let both =
                if first == place { format!("in {place}") } else { format!("in {first} and in {place}") };
            mistakes.push(format!("service {name} is there twice: {both}"));
        }
    }
    if !mistakes.is_empty() {
        bail!(mistakes.join("\nwarren: "));
    }
    if manifests.is_empty() {
        bail!("no manifest in {}", paths.iter().map(|path| shown(path)).collect::<Vec<_>>().join(", "));
    }
    Ok(manifests.into_iter().map(|(_, manifest)| manifest).collect())
}

/// What a place is called in messages.
fn shown(path: &Path) -> String {
    if path == Path::new(STANDARD_INPUT) {
        "the standard input".to_owned()
    } else {
        path.display().to_string()
    }
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
    let source: Box<dyn Read> = if path == Path::new(STANDARD_INPUT) {
        Box::new(io::stdin())
    } else {
        Box::new(fs::File::open(path).with_context(|| format!("open {}", path.display()))?)
    };
    // One byte more than is read says that there is more; the parser then says how much it takes.
    let mut text = String::new();
    source
        .take(MAX_MANIFEST_BYTES as u64 + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", shown(path)))?;
    Ok(text)
}
