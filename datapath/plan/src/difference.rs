//! Where the kernel differs from what is wanted, for people and for counters.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Observed, Prune, TableKey, Tables};

/// One entry that is not as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which entry.
    pub key: TableKey,
    /// What is wanted, in words; `None`: nothing.
    pub wanted: Option<String>,
    /// What is there, in words; `None`: nothing.
    pub found: Option<String>,
    /// Whether it is left as it is, because its table's source is not complete (P6).
    pub kept: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.wanted, &self.found) {
            (Some(wanted), None) => write!(f, "{}: missing, wanted {wanted}", self.key),
            (Some(wanted), Some(found)) => write!(f, "{}: wanted {wanted}, found {found}", self.key),
            (None, Some(found)) => write!(f, "{}: not wanted, found {found}", self.key),
            (None, None) => write!(f, "{}: not wanted, found in part", self.key),
        }?;
        if self.kept { f.write_str(" (kept: its source is not complete)") } else { Ok(()) }
    }
}

/// All differences, by key. O(entries).
pub(crate) fn differences(wanted: &Tables, observed: &Observed, prune: Prune) -> Vec<Difference> {
    let found = &observed.tables;
    let mut keys = wanted.keys();
    keys.append(&mut found.keys());
    keys.extend(observed.endpoint_devices.iter().copied().map(TableKey::Endpoint));
    keys.into_iter()
        .filter_map(|key| {
            let (want, have) = (wanted.get(&key), found.get(&key));
            let same = matches!((&want, &have), (Some(want), Some(have)) if want.same(have));
            let kept = want.is_none() && !prune.allows(&key);
            (!same).then(|| Difference {
                key,
                wanted: want.map(|entry| entry.to_string()),
                found: have.map(|entry| entry.to_string()),
                kept,
            })
        })
        .collect()
}
