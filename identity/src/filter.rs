//! Which labels count for the identity: labels that differ on every endpoint must not make a number each.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Labels;

/// A label key, or the beginning of keys with `*` behind it; `-` before it excludes. Text form: `app`,
/// `team/*`, `-build/*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelPattern {
    exclude: bool,
    key: String,
    prefix: bool,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "label pattern {0:?} is not valid: write a key, or the beginning of keys and '*', with '-' before it to exclude"
)]
pub struct PatternError(String);

impl LabelPattern {
    fn matches(&self, key: &str) -> bool {
        if self.prefix { key.starts_with(&self.key) } else { key == self.key }
    }
}

impl FromStr for LabelPattern {
    type Err = PatternError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (exclude, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (prefix, key) = rest.strip_suffix('*').map_or((false, rest), |rest| (true, rest));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if (key.is_empty() && !prefix) || key.starts_with('-') || !key.bytes().all(allowed) {
            return Err(PatternError(text.to_owned()));
        }
        Ok(Self { exclude, key: key.to_owned(), prefix })
    }
}

impl TryFrom<String> for LabelPattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LabelPattern> for String {
    fn from(pattern: LabelPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for LabelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (exclude, prefix) = (if self.exclude { "-" } else { "" }, if self.prefix { "*" } else { "" });
        write!(f, "{exclude}{}{prefix}", self.key)
    }
}

/// Patterns in order; the first that matches a key decides. A key that none matches counts, unless some
/// pattern includes: then only what is included counts. Without patterns all labels count.
///
/// All nodes of a fleet should have the same one: nodes with different filters give the same endpoint
/// different identities (none of them wrong, but twice as many).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelFilter(Vec<LabelPattern>);

impl LabelFilter {
    /// A filter of patterns in this order.
    pub fn new(patterns: Vec<LabelPattern>) -> Self {
        Self(patterns)
    }

    /// Whether labels with this key count.
    pub fn counts(&self, key: &str) -> bool {
        match self.0.iter().find(|pattern| pattern.matches(key)) {
            Some(pattern) => !pattern.exclude,
            None => self.0.iter().all(|pattern| pattern.exclude),
        }
    }

    /// The labels that count.
    pub fn apply(&self, labels: &Labels) -> Labels {
        let counting: BTreeMap<String, String> = labels
            .iter()
            .filter(|(key, _)| self.counts(key))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Labels::new(counting).expect("a part of valid labels is valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(patterns: &[&str], labels: &str, expected: &str) {
        let filter = LabelFilter::new(patterns.iter().map(|text| text.parse().unwrap()).collect());
        assert_eq!(filter.apply(&labels.parse().unwrap()).to_string(), expected, "{patterns:?} on {labels}");
    }

    #[test]
    fn filter_is_decided_by_the_first_match() {
        check(&[], "app=web,build/id=7", "app=web,build/id=7");
        check(&["-build/*"], "app=web,build/id=7", "app=web");
        check(&["build/id", "-build/*"], "app=web,build/id=7,build/by=me", "build/id=7");
        check(&["-build/id", "build/*"], "app=web,build/id=7,build/by=me", "build/by=me");
        check(&["app"], "app=web,apple=red", "app=web");
        check(&["-*"], "app=web", "");
        check(&["app", "-*"], "app=web,tier=1", "app=web");
    }

    #[test]
    fn pattern_text_is_parsed_or_refused() {
        for text in ["app", "team/*", "-build/*", "-*", "*"] {
            assert_eq!(text.parse::<LabelPattern>().unwrap().to_string(), text);
        }
        for text in ["", "-", "--a", "a*b", "a b", "**", "ä"] {
            assert_eq!(text.parse::<LabelPattern>(), Err(PatternError(text.to_owned())));
        }
    }
}
