//! The pages name what exists: links, tests, functions, settings.

use std::collections::BTreeSet;

use deploy_xtask::{extension, files, read, root};

/// The header of the tables of `docs/CONTRIBUTING.md`.
const CHECKLIST: &str = "| place | what | if forgotten, fails |";

#[test]
fn links_between_pages_lead_to_files() {
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

/// The words in backquotes of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The words in backquotes of column `number` (from 1) of all tables under the line `header`.
fn column(page: &str, header: &str, number: usize) -> Vec<String> {
    let mut lines = page.lines();
    let mut words = Vec::new();
    while lines.by_ref().any(|line| line == header) {
        let rows = lines.by_ref().skip(1).take_while(|line| line.starts_with('|'));
        words.extend(
            rows.filter_map(|row| row.split('|').nth(number))
                .flat_map(quoted)
                .map(String::from)
                .collect::<Vec<_>>(),
        );
    }
    words
}

/// The names of all functions of the repository.
fn functions() -> BTreeSet<String> {
    let texts = files().into_iter().filter(|file| extension(file) == "rs").map(read);
    let names = |text: String| {
        let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
        names.map(String::from).collect::<Vec<_>>()
    };
    texts.flat_map(names).collect()
}

#[test]
fn invariants_and_checklists_name_tests_that_exist() {
    let functions = functions();
    for (page, header) in
        [("docs/ARCHITECTURE.md", "| invariant | kept by |"), ("docs/CONTRIBUTING.md", CHECKLIST)]
    {
        let number = header.matches('|').count() - 1;
        let named = column(&read(page), header, number);
        assert!(!named.is_empty(), "{page} has no table under {header}");
        let missing: Vec<_> = named.into_iter().filter(|name| !functions.contains(name)).collect();
        assert!(missing.is_empty(), "{page}: no function is named {}", missing.join(", "));
    }
}

#[test]
fn checklists_name_files_that_exist() {
    let named = column(&read("docs/CONTRIBUTING.md"), CHECKLIST, 1);
    assert!(!named.is_empty(), "docs/CONTRIBUTING.md has no table under {CHECKLIST}");
    let missing: Vec<_> = (named.into_iter())
        // A path with a name in capitals stands for the file that is to be added.
        .filter(|path| !path.contains("NAME") && !root().join(path).exists())
        .collect();
    assert!(missing.is_empty(), "docs/CONTRIBUTING.md: no file {}", missing.join(", "));
}

/// `datapath/ebpf/src/main.rs::decide`, anywhere in the pages.
#[test]
fn pages_name_functions_that_exist_in_the_named_file() {
    let mut missing = Vec::new();
    let mut found_any = false;
    for page in ["docs/ARCHITECTURE.md", "docs/CONTRIBUTING.md"] {
        let text = read(page);
        for (file, name) in quoted(&text).filter_map(|word| word.split_once(".rs::")) {
            found_any = true;
            let path = root().join(format!("{file}.rs"));
            let defines = ["fn", "struct", "enum", "trait", "const", "macro_rules!"];
            let exists = std::fs::read_to_string(&path).is_ok_and(|source| {
                let words: Vec<&str> = source
                    .split(|c: char| !c.is_ascii_alphanumeric() && !"_!".contains(c))
                    .filter(|it| !it.is_empty())
                    .collect();
                words.windows(2).any(|pair| defines.contains(&pair[0]) && pair[1] == name)
            });
            if !exists {
                missing.push(format!("{page}: {file}.rs::{name}"));
            }
        }
    }
    assert!(found_any, "docs/ARCHITECTURE.md names no function by its file");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// `origin::check` is a function in a file or folder of that name.
#[test]
fn life_of_a_packet_names_functions_of_the_programs() {
    let page = read("docs/ARCHITECTURE.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Life of a packet"));
    let steps: Vec<(&str, &str)> =
        quoted(section.expect("the section is there")).filter_map(|word| word.split_once("::")).collect();
    assert!(steps.len() >= 10, "{steps:?}");
    let programs: Vec<_> = files()
        .into_iter()
        .filter(|file| file.starts_with("datapath/ebpf/src") && extension(file) == "rs")
        .collect();
    let exists = |(module, function): &(&str, &str)| {
        programs
            .iter()
            .filter(|file| {
                file.with_extension("").components().rev().take(2).any(|part| part.as_os_str() == *module)
            })
            .any(|file| read(file).contains(&format!("fn {function}")))
    };
    // A method of a type is no step.
    let missing: Vec<_> = steps
        .iter()
        .filter(|(module, _)| module.starts_with(char::is_lowercase))
        .filter(|step| !exists(step))
        .collect();
    assert!(missing.is_empty(), "docs/ARCHITECTURE.md: no such function in the programs: {missing:?}");
}

#[test]
fn settings_are_described_in_their_order() {
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
fn column_of_all_tables_under_a_header() {
    let page = "x\n| a | b |\n|---|---|\n| one `no` | `f`, `g` |\n| two | `h` |\n\n| three | `i` |\n| a | b |\n|---|---|\n| | `k` |";
    assert_eq!(column(page, "| a | b |", 2), ["f", "g", "h", "k"]);
    assert_eq!(column(page, "| a | b |", 1), ["no"]);
}
