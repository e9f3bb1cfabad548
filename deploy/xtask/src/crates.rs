//! Crates and their dependencies, read from `cargo metadata`.

use std::process::Command;

use serde::Deserialize;

use crate::root;

/// One crate of this workspace, or one that the workspace depends on.
#[derive(Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// The SPDX expression of the crate's manifest.
    pub license: Option<String>,
    /// Path of the crate's `Cargo.toml`.
    pub manifest_path: std::path::PathBuf,
    /// The source of the crate; `None` for crates of the workspace.
    pub source: Option<String>,
    pub dependencies: Vec<Dependency>,
    pub targets: Vec<Target>,
}

/// One library, program, test or bench of a crate.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// `lib`, `bin`, `test`, `bench`, ...
    pub kind: Vec<String>,
    /// Path of the target's root file.
    pub src_path: std::path::PathBuf,
}

impl Target {
    /// Whether the target is a library or a program.
    pub fn is_shipped(&self) -> bool {
        self.kind.iter().any(|kind| ["lib", "bin"].contains(&kind.as_str()))
    }
}

/// One line of a `[dependencies]` table.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The crate's own name, even if the manifest renames the dependency.
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

    /// The names of the crate's normal and build dependencies.
    pub fn ships_with(&self) -> impl Iterator<Item = &str> {
        self.dependencies.iter().filter(|it| it.kind != DependencyKind::Dev).map(|it| it.name.as_str())
    }
}

/// The crates of this workspace.
pub fn workspace() -> Vec<Package> {
    metadata(&["--no-deps"])
}

/// The workspace's crates and all their dependencies on this platform.
pub fn dependency_tree() -> Vec<Package> {
    let version = run(Command::new(cargo()).args(["--version", "--verbose"]));
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo prints its host");
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

/// The cargo that runs the tests, so that both use one toolchain.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}
