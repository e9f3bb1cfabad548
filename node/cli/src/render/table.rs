//! Plain tables: a heading, columns that line up, nothing that a shell would stumble over.

use comfy_table::{Table, presets};

/// Renders rows under a heading; says so when there are none, and when there are more than shown.
pub fn table<const N: usize>(
    heading: [&str; N],
    rows: Vec<[String; N]>,
    total: usize,
    things: &str,
) -> String {
    if rows.is_empty() {
        return format!("no {things}\n");
    }
    let shown = rows.len();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heading);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    if shown < total {
        text += &format!("{shown} of {total} {things} shown\n");
    }
    text
}
