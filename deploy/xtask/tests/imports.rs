//! Who may import whom: `docs/ARCHITECTURE.md` says it, `cargo metadata` must agree.

use std::collections::BTreeSet;

use deploy_xtask::{Kind, import_table, workspace};

/// Crates of others that have one home, and that home: nobody else names them, not even in tests.
const HOMES: [(&str, &str); 7] = [
    ("aya", "datapath-linux"),
    ("aya-obj", "datapath-linux"),
    ("aya-ebpf", "datapath-ebpf"),
    ("rtnetlink", "datapath-linux"),
    ("netlink-", "datapath-linux"),
    ("etcd-client", "kvstore-etcd"),
    ("chitchat", "node-gossip"),
];

/// Crates of others that bring a clock, sockets, files, threads or randomness.
const IMPURE: [&str; 9] = ["chrono", "getrandom", "libc", "mio", "nix", "rand", "socket2", "time", "tokio"];

#[test]
fn imports_are_exactly_those_of_the_table() {
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
        table.keys().filter(|it| !ours.contains(it.as_str())).map(|it| format!("no crate is called {it}")),
    );

    assert!(
        wrong.is_empty(),
        "the table in docs/ARCHITECTURE.md is not what the crates do, which is:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn a_crate_is_named_after_its_folder() {
    let root = deploy_xtask::root();
    for package in workspace() {
        let folder = package.directory().strip_prefix(&root).expect("crates lie in the repository");
        assert_eq!(package.name, folder.to_string_lossy().replace('/', "-"));
    }
}

#[test]
fn outside_crates_stay_in_their_homes() {
    let mut wrong = Vec::new();
    for package in workspace() {
        for dependency in &package.dependencies {
            let home = HOMES.iter().find(|(name, _)| {
                dependency.name == *name || name.ends_with('-') && dependency.name.starts_with(name)
            });
            if let Some((_, home)) = home.filter(|(_, home)| package.name != *home) {
                wrong.push(format!("{} names {}, which only {home} may", package.name, dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_crates_rest_on_pure_crates() {
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
    assert!(wrong.is_empty(), "PURE is what has only pure imports:\n{}", wrong.join("\n"));
}
