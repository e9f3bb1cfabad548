//! An observation, told as its difference from what was expected.
//!
//! Most observations find what was expected. A log of them then need not hold the whole kernel each time.

use serde::{Deserialize, Serialize};

use crate::{EndpointId, Entry, Observed, TableKey, Tables};

/// How an observation differs from the tables that the reconciler believed the kernel to hold. Unlike
/// [`Difference`](crate::Difference), a delta is exact: expected tables and delta give the observation back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedDelta {
    /// Entries that are new or have another value.
    puts: Vec<Entry>,
    /// Entries that are gone.
    removed: Vec<TableKey>,
    broken: Vec<String>,
    /// `None`: the endpoints of the observed tables, in their order.
    endpoint_devices: Option<Vec<EndpointId>>,
}

impl ObservedDelta {
    /// The difference of an observation from the expected tables. O(entries), without a copy where they are equal.
    pub fn new(expected: &Tables, observed: &Observed) -> Self {
        let Observed { tables, broken, endpoint_devices } = observed;
        let derived = tables.endpoints.keys().eq(endpoint_devices);
        let mut delta = Self {
            broken: broken.clone(),
            endpoint_devices: (!derived).then(|| endpoint_devices.clone()),
            ..Self::default()
        };
        if expected != tables {
            for key in tables.keys() {
                match tables.get(&key) {
                    Some(entry) if expected.get(&key).as_ref() != Some(&entry) => {
                        delta.puts.push(entry);
                    }
                    _ => {}
                }
            }
            delta.removed = expected.keys().into_iter().filter(|key| !tables.contains(key)).collect();
        }
        delta
    }

    /// The observation.
    pub fn apply(self, expected: &Tables) -> Observed {
        let mut tables = expected.clone();
        self.puts.into_iter().for_each(|entry| tables.put(entry));
        self.removed.iter().for_each(|key| tables.remove(key));
        let devices = self.endpoint_devices.unwrap_or_else(|| tables.endpoints.keys().copied().collect());
        Observed { tables, broken: self.broken, endpoint_devices: devices }
    }
}
