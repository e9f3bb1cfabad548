//! Plain tables: a heading and aligned columns, in ASCII without borders.

use comfy_table::{Table, presets};

/// Renders rows under a heading. Says so if there are no rows, and if `total` exceeds them.
pub fn table<R: IntoIterator<Item = String>>(
    heading: &[&str],
    rows: Vec<R>,
    total: usize,
    things: &str,
) -> String {
    if rows.is_empty() {
        return format!("no {things}\n");
    }
    let shown = rows.len();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heading.iter());
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
