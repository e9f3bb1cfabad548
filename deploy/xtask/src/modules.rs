//! The modules of a crate and the imports between their files, read from the source.
//!
//! Tests (`#[cfg(test)]`) are left out. Only paths are seen: a call of a method whose `impl` is in another file is no import.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A re-export or a chain of them is followed for so many steps; then a cycle of re-exports is assumed.
const MAX_REEXPORTS: usize = 16;

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

/// The folder of the files of a module's children.
fn folder_of(file: &Path) -> PathBuf {
    let parent = file.parent().expect("a source file lies in a folder");
    let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("source files have UTF-8 names");
    if ["lib", "main", "mod"].contains(&stem) { parent.to_path_buf() } else { parent.join(stem) }
}

fn read_file(file: &Path, folder: &Path, path: ModulePath, modules: &mut BTreeMap<ModulePath, Module>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("parse {}: {error}", file.display()));
    read_items(&parsed.items, file, folder, path, modules);
}

fn read_items(
    items: &[syn::Item],
    file: &Path,
    folder: &Path,
    path: ModulePath,
    modules: &mut BTreeMap<ModulePath, Module>,
) {
    let mut module = Module { file: file.to_path_buf(), ..Module::default() };
    for item in items {
        let syn::Item::Mod(child) = item else {
            module.visit_item(item);
            continue;
        };
        if is_test(&child.attrs) {
            continue;
        }
        let name = child.ident.to_string();
        let child_path = child_of(&path, &name);
        match &child.content {
            Some((_, items)) => read_items(items, file, &folder.join(&name), child_path, modules),
            None => {
                let flat = folder.join(format!("{name}.rs"));
                let child_file = if flat.exists() { flat } else { folder.join(&name).join("mod.rs") };
                read_file(&child_file, &folder_of(&child_file), child_path, modules);
            }
        }
    }
    modules.insert(path, module);
}

fn child_of(path: &[String], name: &str) -> ModulePath {
    [path, &[name.to_owned()]].concat()
}

/// Whether an item has `#[cfg(test)]` or `#[test]`.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::NameValue(_) => false,
    })
}

impl Module {
    fn add_use(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_use(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) if name.ident == "self" => self.add_name(prefix.last(), prefix.to_vec()),
            syn::UseTree::Name(name) => self.add_name(Some(&name.ident.to_string()), with(&name.ident)),
            syn::UseTree::Rename(name) if name.ident == "self" => {
                self.add_name(Some(&name.rename.to_string()), prefix.to_vec());
            }
            syn::UseTree::Rename(name) => self.add_name(Some(&name.rename.to_string()), with(&name.ident)),
            syn::UseTree::Glob(_) => {
                self.globs.push(prefix.to_vec());
                self.paths.insert(prefix.to_vec());
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(tree, prefix)),
        }
    }

    fn add_name(&mut self, name: Option<&String>, path: Vec<String>) {
        self.paths.insert(path.clone());
        self.uses.extend(name.map(|name| (name.clone(), path)));
    }

    /// Adds the paths in the tokens of a macro call, which the parser leaves unparsed.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.add_path(&mut path);
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.add_path(&mut path);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.add_path(&mut path);
    }

    /// Moves a path of tokens into the set. A single word is no path: it may be the `crate` of `pub(crate)`.
    fn add_path(&mut self, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Module {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        use syn::Item;
        let (attributes, name) = match item {
            Item::Const(it) => (&it.attrs, Some(&it.ident)),
            Item::Enum(it) => (&it.attrs, Some(&it.ident)),
            Item::Fn(it) => (&it.attrs, Some(&it.sig.ident)),
            Item::Impl(it) => (&it.attrs, None),
            Item::Macro(it) => (&it.attrs, it.ident.as_ref()),
            Item::Static(it) => (&it.attrs, Some(&it.ident)),
            Item::Struct(it) => (&it.attrs, Some(&it.ident)),
            Item::Trait(it) => (&it.attrs, Some(&it.ident)),
            Item::Type(it) => (&it.attrs, Some(&it.ident)),
            Item::Union(it) => (&it.attrs, Some(&it.ident)),
            Item::Use(it) => (&it.attrs, None),
            _ => return,
        };
        if is_test(attributes) {
            return;
        }
        self.items.extend(name.map(ToString::to_string));
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&item.tree, &[]);
    }

    /// `pub(crate)` and `pub(super)` are no imports.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.add_tokens(call.tokens.clone());
    }
}

/// The file that defines what `path` names, seen from the module `from`; `None` for a path into another crate. A name that the
/// last module of the path neither defines nor imports belongs to that module.
fn resolve<'a>(
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The imports in cycles of a crate of these files, as `a.rs -> b.rs`.
    fn cycles(name: &str, files: &[(&str, &str)]) -> Vec<String> {
        let folder = std::env::temp_dir().join(format!("warren-xtask-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
            fs::write(path, text).expect("write a source");
        }
        let imports = Imports::of_crate(&folder.join("lib.rs"));
        let short = |path: &Path| path.strip_prefix(&folder).expect("in the folder").display().to_string();
        let found =
            imports.in_cycles().iter().map(|(a, b)| format!("{} -> {}", short(a), short(b))).collect();
        fs::remove_dir_all(&folder).expect("remove the folder");
        found
    }

    #[test]
    fn imports_between_siblings_form_a_cycle() {
        let root = ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;");
        let both = ["a.rs -> b.rs", "b.rs -> a.rs"];
        assert_eq!(
            cycles(
                "direct",
                &[
                    root,
                    ("a.rs", "use crate::b::B; pub struct A(B);"),
                    ("b.rs", "use super::a::A; pub struct B(A);")
                ]
            ),
            both
        );
        // By a re-export of the root, by a path in an expression, and by one in a macro call.
        assert_eq!(
            cycles(
                "reexport",
                &[
                    root,
                    ("a.rs", "use crate::B; pub struct A(B);"),
                    ("b.rs", "pub struct B; fn f() { crate::a::g() }")
                ]
            ),
            both
        );
        assert_eq!(
            cycles(
                "macro",
                &[
                    root,
                    ("a.rs", "use crate::b::B; pub struct A(B);"),
                    ("b.rs", "pub struct B; fn f() { println!(\"{}\", crate::a::g()) }")
                ]
            ),
            both
        );
    }

    #[test]
    fn imports_of_parents_and_of_tests_form_no_cycle() {
        let root = ("lib.rs", "mod a; pub struct Root(a::A);");
        assert_eq!(cycles("parent", &[root, ("a.rs", "use super::Root; pub struct A(Box<Root>);")]), [""; 0]);
        let tests = "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }";
        assert_eq!(
            cycles("tests", &[("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", tests)]),
            [""; 0]
        );
    }

    #[test]
    fn imports_of_a_grandparent_form_a_cycle_through_its_other_children() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a/mod.rs", "mod deep; pub struct A;"),
            ("a/deep.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::deep::D; pub struct B;"),
        ];
        assert_eq!(cycles("deep", &files), ["a/deep.rs -> b.rs", "b.rs -> a/deep.rs"]);
    }
}
