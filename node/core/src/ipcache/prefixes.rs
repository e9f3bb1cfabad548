//! The wanted ipcache entries that are not exact addresses, found by longest prefix.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use prefix_trie::joint::JointPrefixSet;
use serde::{Deserialize, Serialize};

/// Some thousands of blocks, beside up to hundreds of thousands of exact addresses, which are found by themselves. One per
/// node, serialised as the list of its prefixes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Vec<IpNetwork>", into = "Vec<IpNetwork>")]
pub(super) struct Prefixes(JointPrefixSet<IpNetwork>);

impl Prefixes {
    /// Notes whether an entry is wanted.
    pub fn set(&mut self, prefix: IpNetwork, wanted: bool) {
        match wanted {
            _ if is_exact(prefix) => false,
            true => self.0.insert(prefix),
            false => self.0.remove(&prefix),
        };
    }

    /// The longest prefix that an address lies in. O(length of the prefix).
    pub fn longest(&self, address: IpAddr) -> Option<IpNetwork> {
        self.0.get_lpm(&IpNetwork::from(address))
    }
}

impl From<Vec<IpNetwork>> for Prefixes {
    fn from(prefixes: Vec<IpNetwork>) -> Self {
        Self(prefixes.into_iter().collect())
    }
}

impl From<Prefixes> for Vec<IpNetwork> {
    fn from(Prefixes(prefixes): Prefixes) -> Self {
        prefixes.into_iter().collect()
    }
}

/// Whether a prefix is one address.
pub(super) fn is_exact(prefix: IpNetwork) -> bool {
    IpNetwork::from(prefix.ip()) == prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_longest_match_decides_and_exact_addresses_are_left_out() {
        let prefix = |text: &str| text.parse::<IpNetwork>().unwrap();
        let mut prefixes = Prefixes::default();
        for text in ["10.0.0.0/8", "10.1.0.0/24", "10.1.0.7/32", "fd00::/64"] {
            prefixes.set(prefix(text), true);
        }
        let check = |prefixes: &Prefixes, address: &str, expected: Option<&str>| {
            assert_eq!(prefixes.longest(address.parse().unwrap()), expected.map(prefix), "{address}");
        };
        check(&prefixes, "10.1.0.7", Some("10.1.0.0/24"));
        check(&prefixes, "10.2.0.7", Some("10.0.0.0/8"));
        check(&prefixes, "fd00::7", Some("fd00::/64"));
        check(&prefixes, "192.0.2.1", None);
        prefixes.set(prefix("10.1.0.0/24"), false);
        let read_back = Prefixes::from(Vec::from(prefixes));
        check(&read_back, "10.1.0.7", Some("10.0.0.0/8"));
    }
}
