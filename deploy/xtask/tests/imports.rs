//! The imports between crates: `cargo metadata` must agree with the table in `docs/ARCHITECTURE.md`.

use std::collections::BTreeSet;

use deploy_xtask::{Kind, import_table, workspace};

/// External crates that only one crate of the workspace may depend on, even for tests.
const HOMES: [(&str, &str); 7] = [
    ("aya", "datapath-linux"),
    ("aya-obj", "datapath-linux"),
    ("aya-ebpf", "datapath-ebpf"),
    ("rtnetlink", "datapath-linux"),
    ("netlink-", "datapath-linux"),
    ("etcd-client", "kvstore-etcd"),
    ("chitchat", "node-gossip"),
];

/// External crates that bring a clock, sockets, files, threads or randomness.
const IMPURE: [&str; 9] = ["chrono", "getrandom", "libc", "mio", "nix", "rand", "socket2", "time", "tokio"];

#[test]
fn imports_equal_the_table() {
    let table = import_table();
    let crates = workspace();
    let ours: BTreeSet<_> = crates.iter().map(|it| it.name.as_str()).collect();
    let mut wrong = Vec::new();

    for package in &crates {
        let actual: BTreeSet<_> =
            package.ships_with().filter(|name| ours.contains(name)).map(String::from).collect();
        let row = table.get(&package.name);
        if row.is_none_or(|row| row.imports != actual) {
            let imports: Vec<_> = actual.iter().map(|it| format!("`{it}`")).collect();
            let kind = row.map_or("?".to_owned(), |row| format!("{:?}", row.kind).to_uppercase());
            wrong.push(format!("| `{}` | {kind} | {} |", package.name, imports.join(", ")));
        }
    }
    wrong.extend(
        table.keys().filter(|it| !ours.contains(it.as_str())).map(|it| format!("no crate is named {it}")),
    );

    assert!(
        wrong.is_empty(),
        "the table in docs/ARCHITECTURE.md differs from the crates; their rows are:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn crate_is_named_after_its_folder() {
    let root = deploy_xtask::root();
    for package in workspace() {
        let folder = package.directory().strip_prefix(&root).expect("crates lie in the repository");
        assert_eq!(package.name, folder.to_string_lossy().replace('/', "-"));
    }
}

#[test]
fn external_crates_have_one_home() {
    let mut wrong = Vec::new();
    for package in workspace() {
        for dependency in &package.dependencies {
            let home = HOMES.iter().find(|(name, _)| {
                dependency.name == *name || name.ends_with('-') && dependency.name.starts_with(name)
            });
            if let Some((_, home)) = home.filter(|(_, home)| package.name != *home) {
                wrong.push(format!("{} depends on {}, which only {home} may", package.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_crates_depend_on_pure_crates_alone() {
    let table = import_table();
    let mut wrong = Vec::new();
    for package in workspace() {
        let kind = table.get(&package.name).map(|row| row.kind);
        if kind != Some(Kind::Pure) && kind != Some(Kind::Kernel) {
            continue;
        }
        for name in package.ships_with() {
            let impure = match table.get(name) {
                Some(row) => row.kind != Kind::Pure,
                None => IMPURE.contains(&name),
            };
            if impure {
                wrong.push(format!("{} imports {name}", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "PURE crates may depend on PURE crates only:\n{}", wrong.join("\n"));
}
