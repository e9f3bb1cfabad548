//! Enums of the source, and where their variants are mentioned.

use std::path::Path;

use crate::{extension, files, read};

/// The names of the variants of an enum in a folder, relative to the repository. Panics if the folder has no enum of the name.
pub fn variants(folder: &str, name: &str) -> Vec<String> {
    let found = sources(folder).find_map(|text| {
        let file = syn::parse_file(&text).ok()?;
        file.items.into_iter().find_map(|item| match item {
            syn::Item::Enum(item) if item.ident == name => Some(item),
            _ => None,
        })
    });
    let found = found.unwrap_or_else(|| panic!("no enum {name} in {folder}"));
    found.variants.iter().map(|variant| variant.ident.to_string()).collect()
}

/// The variants that no source in a folder mentions as `NAME::variant`.
pub fn unmentioned<'a>(name: &str, variants: &'a [String], folder: &str) -> Vec<&'a str> {
    let texts: Vec<String> = sources(folder).collect();
    let mentions = |variant: &str| texts.iter().any(|text| has_word(text, &format!("{name}::{variant}")));
    variants.iter().map(String::as_str).filter(|variant| !mentions(variant)).collect()
}

/// The Rust sources of a folder, or a single source.
fn sources(folder: &str) -> impl Iterator<Item = String> {
    files()
        .into_iter()
        .filter(move |file| file.starts_with(Path::new(folder)) && extension(file) == "rs")
        .map(read)
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(word).skip(1).any(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
}
