//! The table of allowed imports in `docs/ARCHITECTURE.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::read;

const PAGE: &str = "docs/ARCHITECTURE.md";
const HEADER: &str = "| crate | kind | may import |";

/// The effects that a crate may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No clock, socket, file, thread or randomness of its own.
    Pure,
    /// Waits and runs tasks, but affects nothing outside the process.
    Async,
    /// Speaks to the kernel, the disk or the network.
    Io,
    /// Runs in the kernel.
    Kernel,
}

/// One crate of the table.
#[derive(Debug)]
pub struct Row {
    pub kind: Kind,
    /// The crates of this workspace that the crate imports.
    pub imports: BTreeSet<String>,
}

/// The table, by crate name. Panics on a row that does not parse, with that row.
pub fn import_table() -> BTreeMap<String, Row> {
    parse(&read(PAGE))
}

fn parse(page: &str) -> BTreeMap<String, Row> {
    let mut table = BTreeMap::new();
    let rows =
        page.lines().skip_while(|line| *line != HEADER).skip(2).take_while(|line| line.starts_with('|'));
    for line in rows {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, imports] = cells[..] else {
            panic!("{PAGE}: three cells, not {}: {line}", cells.len())
        };
        let kind = match kind {
            "PURE" => Kind::Pure,
            "ASYNC" => Kind::Async,
            "IO" => Kind::Io,
            "KERNEL" => Kind::Kernel,
            other => panic!("{PAGE}: unknown kind {other:?}: {line}"),
        };
        let imports = imports.split(',').map(|it| unquote(it.trim())).filter(|it| !it.is_empty()).collect();
        let twice = table.insert(unquote(name), Row { kind, imports });
        assert!(twice.is_none(), "{PAGE}: a second row: {line}");
    }
    assert!(!table.is_empty(), "{PAGE} has no table under {HEADER:?}");
    table
}

fn unquote(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{HEADER, Kind, parse};

    #[test]
    fn import_table_ends_at_the_first_line_that_is_no_row() {
        let table = parse(&format!(
            "text\n\n{HEADER}\n|---|---|---|\n| `a` | PURE | |\n| `b` | IO | `a`, `c` |\n\n| x |"
        ));
        assert_eq!(table.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(table["a"].kind, Kind::Pure);
        assert!(table["a"].imports.is_empty());
        assert_eq!(table["b"].imports.iter().collect::<Vec<_>>(), ["a", "c"]);
    }
}
