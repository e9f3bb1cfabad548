//! Rules for every file of the repository.

use std::fs;

use deploy_xtask::{extension, files, read, root};

/// A larger file is generated, and makes every clone slower.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Hosts of package registries, which clients know by themselves. In halves, as this file must not contain their names either.
const REGISTRY_HOSTS: [(&str, &str); 8] = [
    ("crates", ".io"),
    ("debian", ".org/debian"),
    ("npmjs", ".org"),
    ("pypi", ".org"),
    ("golang", ".org"),
    ("docker", ".io"),
    ("ghcr", ".io"),
    ("quay", ".io"),
];

#[test]
fn sources_begin_with_a_module_comment() {
    let silent: Vec<_> = files()
        .into_iter()
        .filter(|file| extension(file) == "rs" && !read(file).starts_with("//! "))
        .map(|file| file.display().to_string())
        .collect();
    assert!(silent.is_empty(), "no `//!` on the first line of:\n{}", silent.join("\n"));
}

#[test]
fn files_are_small() {
    let root = root();
    let large: Vec<_> = files()
        .into_iter()
        .filter(|file| file.file_name().is_none_or(|name| name != "Cargo.lock"))
        .filter(|file| fs::metadata(root.join(file)).is_ok_and(|it| it.len() > MAX_FILE_BYTES))
        .map(|file| file.display().to_string())
        .collect();
    assert!(large.is_empty(), "over {MAX_FILE_BYTES} bytes:\n{}", large.join("\n"));
}

#[test]
fn files_name_no_registry() {
    let hosts = REGISTRY_HOSTS.map(|(name, end)| format!("{name}{end}"));
    let mut wrong = Vec::new();
    for file in files() {
        if !["md", "sh", "toml", "rs", "yaml", "yml", "json", ""].contains(&extension(&file)) {
            continue;
        }
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        wrong.extend(
            hosts
                .iter()
                .filter(|host| text.contains(*host))
                .map(|host| format!("{}: {host}", file.display())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
