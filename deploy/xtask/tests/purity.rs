//! PURE crates have no clock, socket, file, thread, environment or randomness of their own: clippy checks it, with the paths
//! in `deploy/clippy-pure.toml`. Here it is checked that every PURE crate is covered, and that clippy rejects those paths.

use std::{fs, path::Path, process::Command};

use deploy_xtask::{Kind, import_table, read, root, workspace};

const CONFIGURATION: &str = "deploy/clippy-pure.toml";

/// The line of `lib.rs` that turns the lints on. Tests may read files and clocks.
const LINTS: &str = "#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]";

#[test]
fn purity_lints_are_on_in_pure_crates_alone() {
    let table = import_table();
    let configuration = root().join(CONFIGURATION).canonicalize().expect("the configuration is there");
    let mut wrong = Vec::new();
    for package in workspace() {
        let pure = table.get(&package.name).is_some_and(|row| row.kind == Kind::Pure);
        let linked =
            fs::canonicalize(package.directory().join("clippy.toml")).is_ok_and(|it| it == configuration);
        let denied = fs::read_to_string(package.directory().join("src/lib.rs"))
            .is_ok_and(|text| text.lines().any(|line| line == LINTS));
        if (linked, denied) != (pure, pure) {
            wrong.push(format!(
                "{}: PURE {pure}, clippy.toml {linked}, lints in lib.rs {denied}",
                package.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Expressions with an effect, at least one for each kind of effect in the configuration.
const IMPURE: [&str; 15] = [
    "std::time::Instant::now()",
    "std::time::SystemTime::now()",
    "std::hash::RandomState::new()",
    "std::env::var(\"HOME\")",
    "std::fs::read(\"file\")",
    "std::fs::File::open(\"file\")",
    "std::io::stdin()",
    "std::net::TcpListener::bind(\"host:1\")",
    "std::net::TcpStream::connect(\"host:1\")",
    "std::net::UdpSocket::bind(\"host:1\")",
    "std::os::unix::net::UnixListener::bind(\"socket\")",
    "std::os::unix::net::UnixStream::connect(\"socket\")",
    "std::process::Command::new(\"program\")",
    "std::thread::spawn(|| ())",
    "std::collections::HashMap::<u8, u8>::new()",
];

#[test]
fn purity_lints_reject_planted_effects() {
    if !Command::new("cargo").args(["clippy", "--version"]).output().is_ok_and(|it| it.status.success()) {
        println!("skipped: clippy is not installed");
        return;
    }
    let folder = std::env::temp_dir().join(format!("warren-xtask-purity-{}", std::process::id()));
    let write = |file: &str, text: &str| fs::write(folder.join(file), text).expect("write a file");
    fs::create_dir_all(folder.join("src")).expect("make a folder");
    write("Cargo.toml", "[package]\nname = \"planted\"\nedition = \"2024\"\n\n[workspace]\n");
    write("clippy.toml", &read(CONFIGURATION));
    let planted = |expressions: &[&str]| {
        let lines = expressions.iter().map(|expression| format!("    drop({expression});\n"));
        write("src/lib.rs", &format!("{LINTS}\npub fn planted() {{\n{}}}\n", lines.collect::<String>()));
        clippy(&folder)
    };
    let (pure, impure) = (planted(&["std::time::Duration::ZERO.as_secs().to_string()"]), planted(&IMPURE));
    fs::remove_dir_all(&folder).expect("remove the folder");
    assert!(!pure.contains("warning") && !pure.contains("error"), "{pure}");
    let missed: Vec<&str> = (IMPURE.iter().enumerate())
        // The first expression stands on the third line.
        .filter(|(index, _)| !impure.contains(&format!("src/lib.rs:{}:", index + 3)))
        .map(|(_, expression)| *expression)
        .collect();
    assert!(missed.is_empty(), "clippy accepts {missed:?}:\n{impure}");
}

/// Clippy's report on a crate, one line for each finding.
fn clippy(folder: &Path) -> String {
    let output = Command::new("cargo")
        .args(["clippy", "--offline", "--message-format=short"])
        .current_dir(folder)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CLIPPY_CONF_DIR")
        .output()
        .expect("run clippy");
    String::from_utf8(output.stderr).expect("clippy prints UTF-8")
}
