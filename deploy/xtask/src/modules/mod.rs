//! The modules of a crate and the imports between their files, read from the source.
//!
//! Tests (`#[cfg(test)]`) are left out. Only paths are seen: a call of a method whose `impl` is in another file is no import.

mod read;
mod resolve;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use read::{folder_of, read_file};
use resolve::{MAX_REEXPORTS, resolve};

/// A module path from the crate's root: `["service", "backend"]`.
type ModulePath = Vec<String>;

/// A module, in a file of its own or inline.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Names of the items that the module itself defines.
    items: BTreeSet<String>,
    /// Names that `use` brings into the module, with their paths.
    uses: BTreeMap<String, Vec<String>>,
    /// Paths of glob imports.
    globs: Vec<Vec<String>>,
    /// All paths that the module's code mentions.
    paths: BTreeSet<Vec<String>>,
}

/// The files of a crate and the imports between them.
pub struct Imports {
    /// Pairs of files: the first imports from the second. Imports between a module and its own parent are left out.
    edges: BTreeSet<(PathBuf, PathBuf)>,
}

impl Imports {
    /// Reads the crate whose root is this file. Panics if a source file cannot be read or parsed.
    pub fn of_crate(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        read_file(root, &folder_of(root), Vec::new(), &mut modules);
        let parents: BTreeSet<(&Path, &Path)> = (modules.iter())
            .filter_map(|(path, module)| {
                let parent = &modules[path.split_last()?.1];
                Some((module.file.as_path(), parent.file.as_path()))
            })
            .collect();
        let mut edges = BTreeSet::new();
        for (path, module) in &modules {
            for mentioned in &module.paths {
                let Some(file) = resolve(&modules, path, mentioned, MAX_REEXPORTS) else { continue };
                let (from, to) = (module.file.as_path(), file);
                if from != to && !parents.contains(&(from, to)) && !parents.contains(&(to, from)) {
                    edges.insert((from.to_path_buf(), to.to_path_buf()));
                }
            }
        }
        Self { edges }
    }

    /// The imports that are part of a cycle. Empty if the crate has none.
    pub fn in_cycles(&self) -> Vec<&(PathBuf, PathBuf)> {
        self.edges.iter().filter(|(from, to)| self.reaches(to, from)).collect()
    }

    fn reaches(&self, from: &Path, to: &Path) -> bool {
        let mut reached = BTreeSet::from([from]);
        let mut open = vec![from];
        while let Some(file) = open.pop() {
            if file == to {
                return true;
            }
            let next =
                self.edges.iter().filter(|(source, _)| source == file).map(|(_, target)| target.as_path());
            open.extend(next.filter(|file| reached.insert(file)));
        }
        false
    }
}
