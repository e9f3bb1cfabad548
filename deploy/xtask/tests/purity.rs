//! PURE crates own no clock, socket, file, thread, environment or randomness.

use deploy_xtask::{Kind, extension, files, import_table, read, root, shipped_code, workspace};

/// Words by which code reaches for one of them.
const IMPURE: [&str; 16] = [
    "Instant::now",
    "SystemTime::now",
    "RandomState::new",
    "Rng::new(",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "rand::",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "thread::spawn",
    "tokio::",
];

/// A generator that is seeded by its owner: chance that has arrived as an argument. (`Rng::new` seeds itself.)
const SEEDED: &str = "fastrand::Rng";

/// `file:line: code` of every impure line of a source text.
fn impure_lines(file: &str, text: &str) -> Vec<String> {
    shipped_code(text)
        .into_iter()
        .filter(|(_, code)| IMPURE.iter().any(|word| code.replace(SEEDED, "Rng").contains(word)))
        .map(|(number, code)| format!("{file}:{number}: {}", code.trim()))
        .collect()
}

#[test]
fn pure_crates_take_time_and_chance_as_arguments() {
    let table = import_table();
    let root = root();
    let files = files();
    let mut wrong = Vec::new();
    let mut read_any = false;
    for package in workspace() {
        if table.get(&package.name).is_none_or(|row| row.kind != Kind::Pure) {
            continue;
        }
        let sources =
            package.directory().strip_prefix(&root).expect("crates lie in the repository").join("src");
        for file in files.iter().filter(|file| file.starts_with(&sources) && extension(file) == "rs") {
            // `tests.rs` and `tests/` are what `#[cfg(test)] mod tests;` names.
            if file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs") {
                continue;
            }
            read_any = true;
            wrong.extend(impure_lines(&file.to_string_lossy(), &read(file)));
        }
    }
    assert!(read_any, "no source of a PURE crate was found");
    assert!(wrong.is_empty(), "PURE crates reach outside:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_what_it_looks_for() {
    assert_eq!(
        impure_lines("a.rs", "fn f() {\n    let now = Instant::now();\n}"),
        ["a.rs:2: let now = Instant::now();"]
    );
    assert_eq!(impure_lines("a.rs", "let rng = fastrand::Rng::with_seed(seed);"), [""; 0]);
    assert_eq!(impure_lines("a.rs", "fastrand::Rng::new();").len(), 1);
    assert_eq!(impure_lines("a.rs", "// Instant::now\n#[cfg(test)]\nmod t {\n    use std::fs;\n}"), [""; 0]);
}
