//! Reads the modules of a crate: their items, imports, and the paths that their code mentions.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use super::{Module, ModulePath};

/// The folder of the files of a module's children.
pub fn folder_of(file: &Path) -> PathBuf {
    let parent = file.parent().expect("a source file lies in a folder");
    let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("source files have UTF-8 names");
    if ["lib", "main", "mod"].contains(&stem) { parent.to_path_buf() } else { parent.join(stem) }
}

pub fn read_file(file: &Path, folder: &Path, path: ModulePath, modules: &mut BTreeMap<ModulePath, Module>) {
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

pub fn child_of(path: &[String], name: &str) -> ModulePath {
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
