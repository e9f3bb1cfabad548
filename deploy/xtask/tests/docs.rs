//! What the pages say can be found: their links, and the tests that they name.

use std::collections::BTreeSet;

use deploy_xtask::{extension, files, read, root};

#[test]
fn links_between_pages_lead_somewhere() {
    let root = root();
    let mut broken = Vec::new();
    for page in files().into_iter().filter(|file| extension(file) == "md") {
        let folder = root.join(&page).parent().expect("a page lies in a folder").to_path_buf();
        for target in read(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The words in backquotes of column `number` (from 1) of the table under the line `header`.
fn column(page: &str, header: &str, number: usize) -> Vec<String> {
    page.lines()
        .skip_while(|line| *line != header)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('|').nth(number))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(String::from)
        .collect()
}

#[test]
fn invariants_name_tests_that_exist() {
    let named = column(&read("docs/ARCHITECTURE.md"), "| invariant | kept by |", 2);
    assert!(!named.is_empty(), "docs/ARCHITECTURE.md has no table of invariants");
    let functions: BTreeSet<String> = files()
        .into_iter()
        .filter(|file| extension(file) == "rs")
        .flat_map(|file| {
            let text = read(file);
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            names.map(String::from).collect::<Vec<_>>()
        })
        .collect();
    let missing: Vec<_> = named.into_iter().filter(|name| !functions.contains(name)).collect();
    assert!(missing.is_empty(), "no function is called: {}", missing.join(", "));
}

#[test]
fn every_setting_is_described() {
    // The agent makes file keys, flags and help from this table: `"section.name" field "help";` a line.
    let declared: Vec<_> = read("node/agent/src/config/settings.rs")
        .lines()
        .filter(|line| line.starts_with("    \"") && line.ends_with("\";"))
        .filter_map(|line| line.split('"').nth(1).map(String::from))
        .collect();
    assert!(!declared.is_empty(), "the agent's table of settings was not found");
    let described = column(&read("docs/OPERATIONS.md"), "| setting | default | what it is |", 1);
    assert_eq!(
        described, declared,
        "docs/OPERATIONS.md does not describe the agent's settings in their order"
    );
}

#[test]
fn a_column_is_read_to_its_end() {
    let page = "x\n| a | b |\n|---|---|\n| one `no` | `f`, `g` |\n| two | `h` |\n\n| three | `i` |";
    assert_eq!(column(page, "| a | b |", 2), ["f", "g", "h"]);
    assert_eq!(column(page, "| a | b |", 1), ["no"]);
}
