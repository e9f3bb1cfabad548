//! Labels in canonical form, and the digest that keys them in etcd.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most labels one endpoint may have.
pub const MAX_LABELS: usize = 64;
/// The longest label key, in bytes (Kubernetes: 253 prefix + 1 + 63 name).
pub const MAX_KEY_BYTES: usize = 317;
/// The longest label value, in bytes (as Kubernetes).
pub const MAX_VALUE_BYTES: usize = 63;

/// A set of `key=value` labels, sorted by key: its canonical form is its only form.
///
/// One text, `key=value\n` for each label, and no map: an agent holds one for each endpoint of the fleet, sets are
/// small, and three labels take 544 bytes as a map, 300 as a slice of texts and 64 as one text, 100,000 times.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(Arc<str>);

/// Why a text or a map is no set of labels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Not of the form `key=value`.
    #[error("label {0:?} is not of the form key=value")]
    NotKeyValue(String),
    /// A key outside the grammar.
    #[error(
        "label key {0:?} is not valid: letters, digits, '-', '_', '.', '/' only, beginning and ending with a letter or digit, at most {MAX_KEY_BYTES} bytes"
    )]
    Key(String),
    /// A value outside the grammar.
    #[error(
        "label value {value:?} of {key:?} is not valid: letters, digits, '-', '_', '.' only, beginning and ending with a letter or digit, at most {MAX_VALUE_BYTES} bytes"
    )]
    Value {
        /// The label's key.
        key: String,
        /// The value refused.
        value: String,
    },
    /// The same key twice.
    #[error("label key {0:?} is given twice")]
    Duplicate(String),
    /// More than [`MAX_LABELS`].
    #[error("{0} labels given, at most {MAX_LABELS} are allowed")]
    TooMany(usize),
}

/// SHA-256 over the canonical form of labels: their key in etcd, as 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelDigest([u8; 32]);

/// A text that is no [`LabelDigest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 digest: 64 digits 0-9, a-f")]
pub struct DigestError;

impl FromStr for LabelDigest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| DigestError)?;
        // One digest has one text: capitals would be another key.
        if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return Err(DigestError);
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for LabelDigest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LabelDigest> for String {
    fn from(digest: LabelDigest) -> Self {
        hex::encode(digest.0)
    }
}

impl fmt::Display for LabelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LabelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn check_part(text: &str, max_bytes: usize, slash: bool) -> bool {
    let edge = |b: u8| b.is_ascii_alphanumeric();
    let inner = |b: u8| edge(b) || matches!(b, b'.' | b'_' | b'-') || (slash && b == b'/');
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= max_bytes
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
        && bytes.iter().all(|&b| inner(b))
}

impl Labels {
    /// Checks keys, values and their number.
    ///
    /// # Errors
    /// The first label that is not valid. An empty value is valid, an empty set too.
    pub fn new(map: BTreeMap<String, String>) -> Result<Self, LabelError> {
        if map.len() > MAX_LABELS {
            return Err(LabelError::TooMany(map.len()));
        }
        for (key, value) in &map {
            if !check_part(key, MAX_KEY_BYTES, true) {
                return Err(LabelError::Key(key.clone()));
            }
            if !value.is_empty() && !check_part(value, MAX_VALUE_BYTES, false) {
                return Err(LabelError::Value { key: key.clone(), value: value.clone() });
            }
        }
        let mut text =
            String::with_capacity(map.iter().map(|(key, value)| key.len() + value.len() + 2).sum());
        for (key, value) in &map {
            text.extend([key, "=", value, "\n"]);
        }
        Ok(Self(text.into()))
    }

    /// Parses texts of the form `key=value`, as the command line takes them.
    ///
    /// # Errors
    /// Also when a key is given twice.
    pub fn parse<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Result<Self, LabelError> {
        let mut map = BTreeMap::new();
        for text in texts {
            let text = text.as_ref();
            let (key, value) =
                text.split_once('=').ok_or_else(|| LabelError::NotKeyValue(text.to_owned()))?;
            if map.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(LabelError::Duplicate(key.to_owned()));
            }
        }
        Self::new(map)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find_map(|(other, value)| (other == key).then_some(value))
    }

    /// All labels, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        // Neither keys nor values have these characters.
        self.0.split_terminator('\n').filter_map(|label| label.split_once('='))
    }

    /// How many labels there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The digest of the canonical form: `key=value\n` for each label, sorted by key.
    pub fn digest(&self) -> LabelDigest {
        LabelDigest(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = LabelError;
    fn try_from(map: BTreeMap<String, String>) -> Result<Self, Self::Error> {
        Self::new(map)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

impl FromStr for Labels {
    type Err = LabelError;
    /// Labels separated by commas: `app=web,tier=front`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.split(',').filter(|part| !part.is_empty()))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{key}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_order_does_not_matter_and_the_digest_never_changes() {
        let check = |left: &str, right: &str, digest: &str| {
            let (left, right): (Labels, Labels) = (left.parse().unwrap(), right.parse().unwrap());
            assert_eq!(left, right);
            assert_eq!(left.digest().to_string(), digest);
            assert_eq!(digest.parse(), Ok(left.digest()));
        };
        // Keys in etcd: `printf 'app=web\ntier=1\n' | sha256sum`.
        check(
            "tier=1,app=web",
            "app=web,tier=1",
            "92c338459188bc62e7f1a61ec6f51144fa956a283042d88725c0cbd73960e66b",
        );
        check("", "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn labels_of_bad_text_are_refused() {
        let check = |texts: &[&str], expected: LabelError| {
            assert_eq!(Labels::parse(texts), Err(expected));
        };
        check(&["app"], LabelError::NotKeyValue("app".to_owned()));
        check(&["app=a", "app=b"], LabelError::Duplicate("app".to_owned()));
        for key in ["", "-a", "a-", "a b", "ä", "a\n", "/a"] {
            check(&[&format!("{key}=v")], LabelError::Key(key.to_owned()));
        }
        for value in ["-a", "a/b", "a b", "a=b", "ä"] {
            let text = format!("k={value}");
            check(&[&text], LabelError::Value { key: "k".to_owned(), value: value.to_owned() });
        }
        let many: Vec<String> = (0..=MAX_LABELS).map(|index| format!("k{index}=")).collect();
        assert_eq!(Labels::parse(many), Err(LabelError::TooMany(MAX_LABELS + 1)));
    }

    #[test]
    fn labels_round_trip() {
        let labels: Labels = "tier=,app=web,a/b.c=x".parse().unwrap();
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a/b.c", "x"), ("app", "web"), ("tier", "")]);
        assert_eq!((labels.len(), labels.get("tier"), labels.get("ap")), (3, Some(""), None));
        assert_eq!((Labels::default().len(), Labels::default().is_empty()), (0, true));
        assert!(!labels.is_empty());
        assert_eq!(format!("{labels:?}"), "{a/b.c=x,app=web,tier=}");
        let digest = labels.digest();
        assert_eq!(format!("{digest:?}"), digest.to_string());
    }

    #[test]
    fn digest_of_bad_text_is_refused() {
        let digest = Labels::default().digest().to_string();
        for bad in [&digest[1..], &digest.to_uppercase(), &digest.replace('b', "g"), &format!("{digest}0")] {
            assert_eq!(bad.parse::<LabelDigest>(), Err(DigestError));
        }
    }

    #[test]
    fn label_limits_are_inclusive() {
        let labels =
            |key: usize, value: usize| format!("{}={}", "k".repeat(key), "v".repeat(value)).parse::<Labels>();
        let many = |count: usize| Labels::parse((0..count).map(|index| format!("k{index}=")));
        assert_eq!(many(MAX_LABELS).map(|labels| labels.len()), Ok(MAX_LABELS));
        assert!(many(MAX_LABELS + 1).is_err());
        assert!(labels(MAX_KEY_BYTES, MAX_VALUE_BYTES).is_ok());
        assert!(labels(MAX_KEY_BYTES + 1, 1).is_err());
        assert!(labels(1, MAX_VALUE_BYTES + 1).is_err());
    }
}
