//! The maps as rows that people and `jq` can read, sorted.

use std::path::Path;

use aya::maps::MapInfo as KernelMapInfo;
use datapath_abi::{AbiBytes, map_name};
use datapath_plan::Protocol;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{datapath::Datapath, descriptor::MAPS, error::DatapathError, flows::FlowFilter, table::Table};

/// One of the maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapInfo {
    /// The map's name in the object and as pinned.
    pub name: String,
    /// The kernel's number for the map.
    pub id: u32,
    /// The map's type, as bpftool calls it.
    pub kind: String,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// The largest number of entries; of a ring, its bytes.
    pub max_entries: u32,
    /// Entries in use; `None` where there is nothing to count.
    pub entries: Option<u64>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapRow {
    /// Its key, decoded.
    pub key: Value,
    /// Its value, decoded.
    pub value: Value,
}

/// A map whose entries can be counted and shown.
pub(crate) trait Shown {
    /// The number of entries.
    fn count(&self) -> Result<u64, DatapathError>;
    /// All entries, sorted by key. Entries that cannot be decoded are left out.
    fn rows(&self) -> Result<Vec<MapRow>, DatapathError>;
}

/// A key of a map, as people read it.
pub(crate) trait ShownKey: AbiBytes {
    /// The order of rows.
    fn order(&self) -> impl Ord;
    /// The key in words; `None` if it cannot be decoded.
    fn show(&self) -> Option<Value>;
}

/// A value of a map with keys `K`, as people read it.
pub(crate) trait ShownValue<K>: AbiBytes {
    /// The value in words.
    fn show(&self, key: &K) -> Value;
}

impl<K: ShownKey, V: ShownValue<K>> Shown for Table<K, V> {
    fn count(&self) -> Result<u64, DatapathError> {
        self.count()
    }

    fn rows(&self) -> Result<Vec<MapRow>, DatapathError> {
        let mut entries = Vec::new();
        self.for_each_entry(|key, value| entries.push((*key, *value)))?;
        entries.sort_unstable_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
        let row = |(key, value): &(K, V)| Some(MapRow { key: key.show()?, value: value.show(key) });
        Ok(entries.iter().filter_map(row).collect())
    }
}

impl Datapath {
    /// All maps with their fill, by name. Counts entries by reading them: O(entries).
    ///
    /// # Errors
    /// [`DatapathError::Map`] or [`DatapathError::Layout`] if the kernel refuses to be read.
    pub fn map_list(&self) -> Result<Vec<MapInfo>, DatapathError> {
        let mut maps = Vec::new();
        for (name, _) in MAPS {
            let path = self.config.pin_root.join("maps").join(name);
            maps.push(self.map_info(name, &path)?);
        }
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(maps)
    }

    fn map_info(&self, name: &str, path: &Path) -> Result<MapInfo, DatapathError> {
        let fail =
            |error: aya::maps::MapError| DatapathError::Layout { map: name.into(), text: error.to_string() };
        let info = KernelMapInfo::from_pin(path).map_err(fail)?;
        let entries = match name {
            // Always in use.
            map_name::CONFIG | map_name::EPOCHS | map_name::SERVICE_PORTS => None,
            map_name::FLOWS_V4 => Some(self.maps.flows_v4.count()?),
            name => self.maps.shown(name).map(Shown::count).transpose()?,
        };
        Ok(MapInfo {
            name: name.into(),
            id: info.id(),
            kind: format!("{:?}", info.map_type().map_err(fail)?),
            key_bytes: info.key_size(),
            value_bytes: info.value_size(),
            max_entries: info.max_entries(),
            entries,
        })
    }

    /// The entries of a map by name, decoded and sorted by key. Array slots that are empty are left out.
    ///
    /// # Errors
    /// [`DatapathError::Unsupported`] for a name that is no map's, or of a map without entries; otherwise as
    /// [`Self::map_list`].
    pub fn map_dump(&self, name: &str) -> Result<Vec<MapRow>, DatapathError> {
        match name {
            map_name::SERVICE_PORTS => self.service_ports(),
            map_name::FLOWS_V4 => {
                let mut flows = self.flow_table()?.list(usize::MAX, &FlowFilter::default())?;
                flows.sort_unstable();
                Ok(flows.into_iter().map(|flow| MapRow { key: flow.key(), value: json!(flow) }).collect())
            }
            map_name::COUNTERS => {
                let used = self.counters()?.into_iter().filter(|(_, count)| count.packets != 0);
                Ok(used
                    .map(|((kind, direction), count)| MapRow {
                        key: json!({ "reason": kind.key(), "direction": direction.key() }),
                        value: json!(count),
                    })
                    .collect())
            }
            name => match self.maps.shown(name) {
                Some(map) => map.rows(),
                None => Err(DatapathError::Unsupported(format!(
                    "{name} is no map that can be dumped; there are {}",
                    MAPS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
                ))),
            },
        }
    }

    /// A row for each port whose bit is set.
    fn service_ports(&self) -> Result<Vec<MapRow>, DatapathError> {
        let mut words = self.maps.service_ports.dump()?;
        words.sort_unstable();
        let ports = words.into_iter().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| 64 * word + bit)
        });
        let row = |port: u32| {
            let protocol = Protocol::ALL.get((port >> 16) as usize)?;
            let key = json!(format!("{} {}", protocol.word(), port & 0xffff));
            Some(MapRow { key, value: json!(1) })
        };
        Ok(ports.filter_map(row).collect())
    }
}
