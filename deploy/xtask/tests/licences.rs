//! Every dependency has a licence that `deny.toml` allows.
//!
//! `make deny` checks the same rule with the same list, but needs cargo-deny.

use std::collections::BTreeSet;

use deploy_xtask::{dependency_tree, read};
use spdx::{Expression, ParseMode};

fn allowed() -> BTreeSet<String> {
    let settings: toml::Table = read("deny.toml").parse().expect("deny.toml is TOML");
    let list = settings["licenses"]["allow"].as_array().expect("licenses.allow is a list");
    list.iter().map(|it| it.as_str().expect("licences are named by strings").to_owned()).collect()
}

/// Rejects a licence expression that no allowed licence satisfies.
fn check_licence(expression: Option<&str>, allowed: &BTreeSet<String>) -> Result<(), String> {
    let text = expression.ok_or("names no licence")?;
    let expression = Expression::parse_mode(text, ParseMode::LAX).map_err(|error| error.to_string())?;
    match expression.evaluate(|wanted| allowed.contains(&wanted.to_string())) {
        true => Ok(()),
        false => Err(text.to_owned()),
    }
}

#[test]
fn dependencies_have_permissive_licences() {
    let allowed = allowed();
    let tree = dependency_tree();
    let wrong: Vec<_> = tree
        .iter()
        .filter_map(|it| {
            let reason = check_licence(it.license.as_deref(), &allowed).err()?;
            Some(format!("{} {}: {reason}", it.name, it.version))
        })
        .collect();
    assert!(tree.iter().any(|it| it.source.is_some()), "the tree has no external crate");
    assert!(wrong.is_empty(), "not allowed by deny.toml:\n{}", wrong.join("\n"));
}

#[test]
fn licence_check_evaluates_expressions() {
    let allowed = BTreeSet::from(["MIT".to_owned()]);
    let check =
        |text, expected: bool| assert_eq!(check_licence(text, &allowed).is_ok(), expected, "{text:?}");
    check(Some("MIT"), true);
    check(Some("MIT/GPL-3.0"), true);
    check(Some("MIT OR GPL-3.0-only"), true);
    check(Some("MIT AND GPL-3.0-only"), false);
    check(Some("GPL-3.0-only"), false);
    check(None, false);
}
