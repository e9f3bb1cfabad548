//! Durations in text form.

use std::time::Duration;

/// Parses `500ms`, `5s`, `1.5s` or `2m`.
///
/// # Errors
/// When the text is not a duration; the error shows the format.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|it: char| it.is_ascii_lowercase());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("{text:?} is no time: write 500ms, 5s or 2m")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is no time: write 500ms, 5s or 2m"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed() {
        for (text, ms) in [("1ms", 1), ("500ms", 500), ("5s", 5_000), ("1.5s", 1_500), ("2m", 120_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)));
        }
        for text in ["", "5", "s", "-1s", "5 s", "5h", "1e99m", "nans"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
