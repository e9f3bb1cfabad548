//! `docs/COMMANDS.md` is generated from the grammar. `UPDATE_GOLDEN=1 cargo test -p node-cli` rewrites it.

use std::{env, fs, path::Path};

use clap::{Command, CommandFactory};

use super::Arguments;

/// Appends the short help of a command and of its subcommands.
fn add(page: &mut String, command: &mut Command, parents: &str) {
    let name = format!("{parents}{}", command.get_name());
    *page += &format!("\n## {name}\n\n```\n");
    command.render_help().to_string().lines().for_each(|line| *page += &format!("{}\n", line.trim_end()));
    *page += "```\n";
    for child in command.get_subcommands_mut().filter(|child| child.get_name() != "help") {
        add(page, child, &format!("{name} "));
    }
}

#[test]
fn commands_page_has_the_help_of_every_command() {
    let mut page =
        "# Commands\n\nGenerated from the grammar of the command line, node/cli/src/arguments.rs; do not edit. `--help` shows more.\n".to_owned();
    let mut root = Arguments::command();
    root.build();
    add(&mut page, &mut root, "");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/COMMANDS.md");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, page, "docs/COMMANDS.md differs; UPDATE_GOLDEN=1 rewrites it");
}
