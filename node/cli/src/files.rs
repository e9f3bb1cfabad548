//! Manifests from files, folders and the standard input.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use identity::ServiceName;
use node_api::{MAX_MANIFEST_BYTES, Manifest, Manifests};

/// What a file of manifests in a folder is called.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The name that stands for the standard input.
const STANDARD_INPUT: &str = "-";

/// Reads all manifests, in the order in which they are named; in a folder, by the names of its files. Each mistake is told
/// with its file and line: what cannot be read, what makes no sense, what is there twice, and that nothing is there. It does
/// not hold up the others.
pub fn read(paths: &[PathBuf]) -> Manifests {
    let mut found: Vec<(String, Manifest)> = Vec::new();
    let mut mistakes = Vec::new();
    for path in paths {
        let files = expand(path).unwrap_or_else(|error| {
            mistakes.push(format!("{error:#}"));
            Vec::new()
        });
        for file in files {
            let place = shown(&file);
            match text(&file) {
                Ok(text) => {
                    let read = Manifests::parse(&text);
                    found.extend(read.manifests.into_iter().map(|manifest| (place.clone(), manifest)));
                    mistakes.extend(read.mistakes.iter().map(|mistake| format!("{place}: {mistake}")));
                }
                Err(error) => mistakes.push(format!("{error:#}")),
            }
        }
    }
    if found.is_empty() && mistakes.is_empty() {
        let places: Vec<String> = paths.iter().map(|path| shown(path)).collect();
        mistakes.push(format!("no manifest in {}", places.join(", ")));
    }
    let mut places: BTreeMap<ServiceName, Vec<String>> = BTreeMap::new();
    for (place, manifest) in &found {
        places.entry(manifest.metadata.name.clone()).or_default().push(format!("in {place}"));
    }
    // Nobody knows which one is meant.
    places.retain(|_, places| places.len() > 1);
    found.retain(|(_, manifest)| !places.contains_key(&manifest.metadata.name));
    for (name, mut places) in places {
        let times = if places.len() == 2 { "twice".to_owned() } else { format!("{} times", places.len()) };
        places.dedup();
        mistakes.push(format!("service {name} is there {times}: {}", places.join(" and ")));
    }
    Manifests { manifests: found.into_iter().map(|(_, manifest)| manifest).collect(), mistakes }
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
