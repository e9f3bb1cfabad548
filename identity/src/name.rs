//! Names of nodes, endpoints, fleets: one grammar for all of them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: that of a DNS label, so that names fit host names and metric labels.
pub const MAX_NAME_BYTES: usize = 63;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty text.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("name {name:?} has {len} bytes, at most {MAX_NAME_BYTES} are allowed")]
    TooLong {
        /// The text, cut short.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character outside the grammar.
    #[error(
        "name {name:?} is not valid: use a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit"
    )]
    Malformed {
        /// The text.
        name: String,
    },
}

/// Checks the grammar of names: `[a-z0-9]([a-z0-9._-]*[a-z0-9])?`, at most [`MAX_NAME_BYTES`] bytes.
///
/// # Errors
/// The reason why the text is no name.
pub fn check_name(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong {
            name: text.chars().take(MAX_NAME_BYTES).collect(),
            len: text.len(),
        });
    }
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let inner = |b: u8| edge(b) || matches!(b, b'.' | b'_' | b'-');
    let bytes = text.as_bytes();
    if edge(bytes[0]) && edge(bytes[bytes.len() - 1]) && bytes.iter().all(|&b| inner(b)) {
        Ok(())
    } else {
        Err(NameError::Malformed { name: text.to_owned() })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// See [`check_name`].
            pub fn new(text: &str) -> Result<Self, NameError> {
                check_name(text)?;
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a node: unique in its fleet, the key of its records in etcd.
    NodeName
);
name_type!(
    /// The name of a service: unique in its fleet, the key of its record in etcd.
    ServiceName
);
name_type!(
    /// The name of an object of any kind that manifests describe. Such names have one grammar, so that every
    /// [`ServiceName`] is an `ObjectName`, and the reverse.
    ObjectName
);
impl From<ServiceName> for ObjectName {
    fn from(name: ServiceName) -> Self {
        Self(name.0)
    }
}
name_type!(
    /// The name of a fleet: part of every etcd key.
    FleetName
);
name_type!(
    /// The name of an endpoint: unique on its node, chosen by the user.
    EndpointName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_grammar_fits_keys_and_host_names() {
        for good in ["a", "0", "node-1.rack_2", &"n".repeat(MAX_NAME_BYTES)] {
            assert_eq!(NodeName::new(good).map(|name| name.to_string()), Ok(good.to_owned()));
        }
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert!(matches!(
            check_name(&"n".repeat(MAX_NAME_BYTES + 1)),
            Err(NameError::TooLong { len: 64, .. })
        ));
        for bad in ["A", "-a", "a-", "a/b", "a b", "..", "ä", "a\0"] {
            assert_eq!(check_name(bad), Err(NameError::Malformed { name: bad.to_owned() }));
        }
    }
}
