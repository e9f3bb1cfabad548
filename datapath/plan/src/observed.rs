//! What the kernel holds, and where that differs from what is wanted, for people and for counters.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    EndpointId, EndpointValue, Prune, Row, TableKey, Tables,
    tables::{Stored, by_row_type},
};

/// What the kernel holds, read whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The entries that are complete. An entry that is there in part (a device without its programs, a map entry without
    /// its device) is left out and named in `broken`, so that the diff makes it again.
    pub tables: Tables,
    /// Devices, map entries and pins of ours that are incomplete or that nothing refers to.
    pub broken: Vec<String>,
    /// Endpoint devices in any state: their numbers must not be used for other endpoints.
    pub endpoint_devices: Vec<EndpointId>,
}

/// One entry that is not as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The entry.
    pub key: TableKey,
    /// The wanted row, in words; `None`: no row is wanted.
    pub wanted: Option<String>,
    /// The row that the kernel holds, in words; `None`: there is none.
    pub found: Option<String>,
    /// The entry stays as it is, because the source of its table is not complete (P6).
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
    keys.extend(observed.endpoint_devices.iter().map(|id| EndpointValue::table_key(*id)));
    let difference = |key: TableKey| {
        by_row_type!(key, |R, row_key| {
            let (want, have) = (wanted.row::<R>(&row_key), found.row::<R>(&row_key));
            let is_same = matches!((want, have), (Some(want), Some(have)) if want.is_same(have));
            (!is_same).then(|| Difference {
                key,
                wanted: want.map(R::to_string),
                found: have.map(R::to_string),
                kept: want.is_none() && !R::may_be_pruned(&prune),
            })
        })
    };
    keys.into_iter().filter_map(difference).collect()
}
