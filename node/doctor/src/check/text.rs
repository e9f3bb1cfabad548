//! Parts of the texts of findings.

/// The number of names in a line; further names are only counted.
const SHOWN: usize = 4;

/// The first few texts, and the number of further ones: `n2, n3, n4, n5 and 7 more`.
pub(super) fn some(texts: &[String]) -> String {
    let shown = texts[..texts.len().min(SHOWN)].join(", ");
    match texts.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `1 node`, `2 nodes`.
pub(super) fn count(number: impl TryInto<u64>, thing: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
