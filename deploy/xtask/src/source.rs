//! Tells the code that ships from comments and tests, as far as a check by words needs it.

/// The lines of a source file that are compiled into what ships, with their numbers from 1: comments are cut,
/// and what `#[cfg(test)]` stands before is left out, up to the end of its braces or its semicolon.
///
/// Works on text that rustfmt has laid out; does not understand `//` or braces inside string literals, which
/// could hide the rest of their own line or of a test module, not more.
pub fn shipped_code(text: &str) -> Vec<(usize, String)> {
    let mut shipped = Vec::new();
    let mut in_test = false;
    let mut depth = 0_i64;
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if !in_test && code.trim_start().starts_with("#[cfg(test)]") {
            (in_test, depth) = (true, 0);
        }
        if in_test {
            let opened = code.matches('{').count() as i64;
            let closed = code.matches('}').count() as i64;
            depth += opened - closed;
            let ends_item = code.trim_end().ends_with(';') || opened + closed > 0;
            in_test = depth > 0 || !ends_item;
        } else if !code.trim().is_empty() {
            shipped.push((index + 1, code.trim_end().to_owned()));
        }
    }
    shipped
}

#[cfg(test)]
mod tests {
    use super::shipped_code;

    fn check(text: &str, expected: &[&str]) {
        let lines: Vec<_> = shipped_code(text).into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines, expected, "{text}");
    }

    #[test]
    fn leaves_out_comments_and_tests() {
        check("//! why\nuse a; // b\n", &["use a;"]);
        check(
            "a();\n#[cfg(test)]\nmod tests {\n    fn f() {\n        now();\n    }\n}\nb();",
            &["a();", "b();"],
        );
        check("#[cfg(test)]\nmod tests;\nb();", &["b();"]);
        check("#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;\nb();", &["b();"]);
        check("#[cfg(test)] use a::{b, c};\nd();", &["d();"]);
    }
}
