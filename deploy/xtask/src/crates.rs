//! Crates and their dependencies, as `cargo metadata` tells them.

use std::process::Command;

use serde::Deserialize;

use crate::root;

/// One crate: of this workspace, or one it depends on.
#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// SPDX expression, as written in the crate's manifest.
    pub license: Option<String>,
    /// Path of its `Cargo.toml`.
    pub manifest_path: std::path::PathBuf,
    /// Where it was fetched from; `None` for crates of the workspace.
    pub source: Option<String>,
    pub dependencies: Vec<Dependency>,
}

/// One line of a `[dependencies]` table.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The crate's own name, also where the manifest renames it.
    pub name: String,
    #[serde(default, deserialize_with = "kind")]
    pub kind: DependencyKind,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DependencyKind {
    #[default]
    Normal,
    Build,
    Dev,
}

/// `cargo metadata` writes null for a normal dependency.
fn kind<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DependencyKind, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Package {
    /// The crate's folder.
    pub fn directory(&self) -> &std::path::Path {
        self.manifest_path.parent().expect("a manifest lies in a folder")
    }

    /// Names of what the shipped crate is made with: its normal and build dependencies.
    pub fn ships_with(&self) -> impl Iterator<Item = &str> {
        self.dependencies.iter().filter(|it| it.kind != DependencyKind::Dev).map(|it| it.name.as_str())
    }
}

/// The crates of this workspace.
pub fn workspace() -> Vec<Package> {
    metadata(&["--no-deps"])
}

/// The workspace's crates and all they depend on, on this platform.
pub fn dependency_tree() -> Vec<Package> {
    let version = run(Command::new(cargo()).args(["--version", "--verbose"]));
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    metadata(&["--filter-platform", host])
}

fn metadata(arguments: &[&str]) -> Vec<Package> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let json = run(Command::new(cargo())
        .current_dir(root())
        .args(["metadata", "--format-version=1", "--locked"])
        .args(arguments));
    serde_json::from_str::<Metadata>(&json).expect("cargo metadata prints its format 1").packages
}

/// The cargo that runs the tests, so that a toolchain chosen there is used here.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}
