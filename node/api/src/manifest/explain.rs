//! Errors of the YAML parser in the words of manifests, with place and field first.

/// `line 6, column 18: port: not a whole number from 0 to 65535`
pub fn explain(error: &serde_saphyr::Error, lines: &[&str]) -> String {
    let text = error.to_string();
    let Some(location) = error.location() else { return text };
    let (line, column) = (location.line(), location.column());
    let place = format!("line {line}, column {column}");
    let text = text.strip_suffix(&format!(" at {place}")).unwrap_or(&text);
    let words = reword(text, column);
    let source = (line as usize).checked_sub(1).and_then(|line| lines.get(line));
    match source.and_then(|line| field_before(line, column as usize)) {
        Some(field) if !words.starts_with(field) => format!("{place}: {field}: {words}"),
        _ => format!("{place}: {words}"),
    }
}

fn reword(text: &str, column: u64) -> String {
    if let Some(rest) = text.strip_prefix("duplicate mapping key: ")
        && let Some((key, _)) = rest.split_once(',')
    {
        return format!("`{key}` is there twice");
    }
    if let Some(address) = text.strip_prefix("invalid address: ") {
        return format!("{address:?} is not a network: write it as 192.0.2.0/24");
    }
    if ["Nodes", "Events"].iter().any(|limit| text.starts_with(&format!("budget breached: {limit}"))) {
        return "the document has more values than any valid manifest".to_owned();
    }
    let words = match text {
        "invalid u16" => "not a whole number from 0 to 65535",
        "invalid u32" => "not a whole number from 0 to 4294967295",
        "invalid IP address syntax" => "not an IP address",
        // Only a document itself begins in the first column.
        "expected mapping start" if column == 1 => {
            "not a manifest: write apiVersion, kind, metadata and spec"
        }
        "expected mapping start" => {
            "fields are expected here: write {name: value}, or name: value on lines below"
        }
        "expected sequence start" => {
            "a list is expected here: write [one, another], or - before each on lines below"
        }
        "cannot deserialize null into string; use Option<String>" => "the value is missing",
        "expected string scalar" => "one word or number is expected here",
        other => other,
    };
    words.to_owned()
}

/// The name of the field whose value begins at a column, if it stands on the same line: `port` of `{port: here}`.
fn field_before(line: &str, column: usize) -> Option<&str> {
    let (end, _) = line.char_indices().nth(column.checked_sub(1)?)?;
    let before = line[..end].trim_end().trim_end_matches('[').trim_end();
    // A missing value has the colon's own place.
    let before = before.strip_suffix(':').or_else(|| line[end..].starts_with(':').then_some(before))?;
    let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '"').next()?.trim_matches('"');
    (!name.is_empty()).then_some(name)
}
