//! Finds the file that defines what a path names.

use std::{collections::BTreeMap, path::Path};

use super::{Module, ModulePath, read::child_of};

/// A re-export or a chain of them is followed for so many steps; then a cycle of re-exports is assumed.
pub const MAX_REEXPORTS: usize = 16;

/// The file that defines what `path` names, seen from the module `from`; `None` for a path into another crate. A name that the
/// last module of the path neither defines nor imports belongs to that module.
pub fn resolve<'a>(
    modules: &'a BTreeMap<ModulePath, Module>,
    from: &[String],
    path: &[String],
    steps: usize,
) -> Option<&'a Path> {
    let mut module = from.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            module.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                module.pop()?;
                rest = &rest[1..];
            }
        }
        name => {
            let module = modules.get(&module)?;
            let child = child_of(from, name);
            if !modules.contains_key(&child) && !module.uses.contains_key(name) {
                return None;
            }
        }
    }
    while let Some((name, after)) = rest.split_first() {
        let child = child_of(&module, name);
        if modules.contains_key(&child) {
            (module, rest) = (child, after);
            continue;
        }
        let here = modules.get(&module)?;
        if here.items.contains(name) || steps == 0 {
            break;
        }
        if let Some(target) = here.uses.get(name) {
            let target = [target.as_slice(), after].concat();
            return resolve(modules, &module, &target, steps - 1);
        }
        let globs = here.globs.iter().filter_map(|glob| {
            let target = [glob.as_slice(), rest].concat();
            resolve_defined(modules, &module, &target, steps - 1)
        });
        if let Some(file) = globs.into_iter().next() {
            return Some(file);
        }
        break;
    }
    modules.get(&module).map(|module| module.file.as_path())
}

/// As [`resolve`], if the module at the end of all but the last segment defines the last segment.
fn resolve_defined<'a>(
    modules: &'a BTreeMap<ModulePath, Module>,
    from: &[String],
    path: &[String],
    steps: usize,
) -> Option<&'a Path> {
    let (name, parents) = path.split_last()?;
    let file = resolve(modules, from, parents, steps)?;
    modules.values().any(|module| module.file == file && module.items.contains(name)).then_some(file)
}
