//! The maps, opened as typed tables: made if they are not there, adopted if they are what this build needs.

use std::{os::fd::AsFd, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo as KernelMapInfo},
};
use datapath_abi::{
    ABI_VERSION, AbiBytes, EndpointEntry, FlowEntry, FlowKey, IpcacheEntry, LpmKey, NodeConfig, NodeEntry,
    V4, map_name,
};

use crate::{counters::CounterTable, error::DatapathError, object, pins, pins::Pins, table::Table};

/// Every map that user space reads or writes.
#[derive(Debug)]
pub(crate) struct Maps {
    pub config: Table<u32, NodeConfig>,
    pub endpoints_by_ifindex: Table<u32, EndpointEntry>,
    pub endpoints_v4: Table<V4, EndpointEntry>,
    pub ipcache_v4: Table<V4, IpcacheEntry>,
    pub ipcache_lpm_v4: Table<LpmKey<V4>, IpcacheEntry>,
    pub nodes: Table<u32, NodeEntry>,
    pub node_by_address_v4: Table<V4, u32>,
    pub flows_v4: Table<FlowKey<V4>, FlowEntry>,
    pub unmasqueraded_lpm_v4: Table<LpmKey<V4>, u32>,
    pub epochs: Table<u32, u32>,
    pub counters: CounterTable,
}

/// What became of the pinned maps of an earlier agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Adoption {
    /// There were none.
    Fresh,
    /// They are in use again, with everything in them.
    Adopted,
    /// They had another layout and were left to the programs that still use them; new, empty ones were made.
    Remade,
}

/// Loads the object, with its maps from the pins where these fit.
///
/// The check comes first, since aya takes a pinned map as it is. On another layout all maps are remade: the old
/// programs go on with the old ones until the links get the new programs.
pub(crate) fn load(pins: &Pins) -> Result<(Ebpf, Maps, Adoption), DatapathError> {
    let folder = pins.maps();
    let adoption = check(&folder)?;
    if adoption == Adoption::Remade {
        for name in pins::names(&folder)? {
            pins::remove(&folder.join(name))?;
        }
    }
    let mut loader = EbpfLoader::new();
    for name in object::MAPS {
        loader.map_pin_path(name, folder.join(name));
    }
    let ebpf = loader.load(object::OBJECT).map_err(DatapathError::load)?;
    let maps = Maps::open(&ebpf)?;
    if adoption != Adoption::Adopted {
        // So that the next agent knows the layout, also if no base is ever written.
        maps.config.put(&0, &NodeConfig { abi_version: ABI_VERSION, ..NodeConfig::default() })?;
    }
    Ok((ebpf, maps, adoption))
}

/// Compares the pinned maps with what the object defines.
fn check(folder: &Path) -> Result<Adoption, DatapathError> {
    let present = pins::names(folder)?;
    if !present.iter().any(|name| name == map_name::CONFIG) {
        // An agent that died between its first pins and the configuration left nothing of worth.
        return Ok(if present.is_empty() { Adoption::Fresh } else { Adoption::Remade });
    }
    let wanted = aya_obj::Object::parse(object::OBJECT).map_err(|error| DatapathError::load(error.into()))?;
    for name in &present {
        let path = folder.join(name);
        let info = KernelMapInfo::from_pin(&path).map_err(|error| layout(name, error.to_string()))?;
        let found = (
            info.key_size(),
            info.value_size(),
            info.max_entries(),
            info.map_type().ok().map(|kind| kind as u32),
        );
        let Some(map) = wanted.maps.get(name) else {
            tracing::warn!(
                map = name,
                "a pinned map that this version does not know: all maps are made anew"
            );
            return Ok(Adoption::Remade);
        };
        let expected = (map.key_size(), map.value_size(), map.max_entries(), Some(map.map_type()));
        if found != expected {
            tracing::warn!(
                map = name,
                ?found,
                ?expected,
                "a pinned map has another layout: all maps are made anew"
            );
            return Ok(Adoption::Remade);
        }
    }
    let data = MapData::from_pin(folder.join(map_name::CONFIG))
        .map_err(|error| layout(map_name::CONFIG, error.to_string()))?;
    let config: Table<u32, NodeConfig> = open_data(map_name::CONFIG, &data)?;
    match config.get(&0)?.map_or(0, |config| config.abi_version) {
        ABI_VERSION => Ok(Adoption::Adopted),
        found => {
            tracing::warn!(
                found,
                expected = ABI_VERSION,
                "the pinned maps have another version: all are made anew"
            );
            Ok(Adoption::Remade)
        }
    }
}

impl Maps {
    fn open(ebpf: &Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            config: open(ebpf, map_name::CONFIG)?,
            endpoints_by_ifindex: open(ebpf, map_name::ENDPOINTS_BY_IFINDEX)?,
            endpoints_v4: open(ebpf, map_name::ENDPOINTS_V4)?,
            ipcache_v4: open(ebpf, map_name::IPCACHE_V4)?,
            ipcache_lpm_v4: open(ebpf, map_name::IPCACHE_LPM_V4)?,
            nodes: open(ebpf, map_name::NODES)?,
            node_by_address_v4: open(ebpf, map_name::NODE_BY_ADDRESS_V4)?,
            flows_v4: open(ebpf, map_name::FLOWS_V4)?,
            unmasqueraded_lpm_v4: open(ebpf, map_name::UNMASQUERADED_LPM_V4)?,
            epochs: open(ebpf, map_name::EPOCHS)?,
            counters: CounterTable::open(data(ebpf, map_name::COUNTERS)?)?,
        })
    }
}

fn open<K: AbiBytes, V: AbiBytes>(ebpf: &Ebpf, name: &'static str) -> Result<Table<K, V>, DatapathError> {
    open_data(name, data(ebpf, name)?)
}

fn open_data<K: AbiBytes, V: AbiBytes>(
    name: &'static str,
    data: &MapData,
) -> Result<Table<K, V>, DatapathError> {
    let info = data.info().map_err(|error| layout(name, error.to_string()))?;
    let fd = data.fd().as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| DatapathError::Map { map: name, operation: "open", source })?;
    Table::new(name, fd, info.key_size(), info.value_size())
}

fn data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData, DatapathError> {
    match ebpf.map(name) {
        Some(
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data),
        ) => Ok(data),
        Some(_) => Err(layout(name, "is of an unexpected type".into())),
        None => Err(layout(name, "is not in the object".into())),
    }
}

fn layout(map: &str, text: String) -> DatapathError {
    DatapathError::Layout { map: map.into(), text }
}
