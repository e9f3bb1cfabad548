//! Reads manifests from files, folders and the standard input.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use identity::ObjectName;
use node_api::{KindName, MAX_MANIFEST_BYTES, Manifest, Manifests};

/// The extensions of manifest files in a folder.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The path that means the standard input.
const STANDARD_INPUT: &str = "-";

/// Reads all manifests, in the order of `paths`, and in a folder in the order of file names. Mistakes are reported with file
/// and line: unreadable files, invalid manifests, duplicates, and no manifest at all. The valid manifests are returned.
pub fn read(paths: &[PathBuf]) -> Manifests {
    let mut found: Vec<(String, Manifest)> = Vec::new();
    let mut mistakes = Vec::new();
    for path in paths {
        let files = expand(path).unwrap_or_else(|error| {
            mistakes.push(format!("{error:#}"));
            Vec::new()
        });
        for file in files {
            let place = place_of(&file);
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
        let places: Vec<String> = paths.iter().map(|path| place_of(path)).collect();
        mistakes.push(format!("no manifest in {}", places.join(", ")));
    }
    let key = |manifest: &Manifest| (manifest.spec.kind(), manifest.name.clone());
    let mut places: BTreeMap<(KindName, ObjectName), Vec<String>> = BTreeMap::new();
    for (place, manifest) in &found {
        places.entry(key(manifest)).or_default().push(format!("in {place}"));
    }
    // Of duplicates none is used: the user's intent is unknown.
    places.retain(|_, places| places.len() > 1);
    found.retain(|(_, manifest)| !places.contains_key(&key(manifest)));
    for ((kind, name), mut places) in places {
        let times = if places.len() == 2 { "twice".to_owned() } else { format!("{} times", places.len()) };
        places.dedup();
        mistakes.push(format!("{} {name} is defined {times}: {}", kind.word(), places.join(" and ")));
    }
    Manifests { manifests: found.into_iter().map(|(_, manifest)| manifest).collect(), mistakes }
}

/// The name of a path in messages.
fn place_of(path: &Path) -> String {
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
    // One byte over the limit lets the parser detect and report a file that is too large.
    let mut text = String::new();
    source
        .take(MAX_MANIFEST_BYTES as u64 + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", place_of(path)))?;
    Ok(text)
}
