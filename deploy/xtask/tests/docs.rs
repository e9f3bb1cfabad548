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

/// The words in backquotes of a table's second column, from the row after the line `header` on.
fn second_column(page: &str, header: &str) -> Vec<String> {
    page.lines()
        .skip_while(|line| *line != header)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.split('|').nth(2))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(String::from)
        .collect()
}

#[test]
fn invariants_name_tests_that_exist() {
    let named = second_column(&read("docs/ARCHITECTURE.md"), "| invariant | kept by |");
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
fn the_second_column_is_read_to_its_end() {
    let page = "x\n| a | b |\n|---|---|\n| one `no` | `f`, `g` |\n| two | `h` |\n\n| three | `i` |";
    assert_eq!(second_column(page, "| a | b |"), ["f", "g", "h"]);
}
