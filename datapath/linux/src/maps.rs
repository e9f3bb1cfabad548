//! The maps, opened as typed tables: made if they are not there, adopted if they are what this build needs.

use std::os::fd::{AsFd, OwnedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
};
use datapath_abi::{
    ABI_VERSION, AbiBytes, AffinityEntry, AffinityKey, BackendEntry, EndpointEntry, FlowEntry, FlowKey,
    FrontendEntry, FrontendKey, IpcacheEntry, LpmKey, NamespaceEntry, NodeConfig, NodeEntry, ServiceEntry,
    SlotBlock, SlotsKey, SocketEntry, SocketKey, Source, V4, map_name,
};

use crate::{
    counters::CounterTable,
    error::DatapathError,
    layout::{self, Shape},
    object, pins,
    pins::Pins,
    rows::Rows,
    table::{self, Table},
};

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
    pub frontends_v4: Table<FrontendKey<V4>, FrontendEntry>,
    pub services: Table<u32, ServiceEntry>,
    pub slots: Table<SlotsKey, SlotBlock>,
    pub backends_v4: Table<u32, BackendEntry<V4>>,
    pub sources_lpm_v4: Table<LpmKey<Source<V4>>, u32>,
    pub affinity: Table<AffinityKey, AffinityEntry>,
    pub service_ports: Table<u32, u64>,
    pub namespaces: Table<u64, NamespaceEntry>,
    pub sockets_v4: Table<SocketKey<V4>, SocketEntry<V4>>,
    pub unmasqueraded_lpm_v4: Table<LpmKey<V4>, u32>,
    pub dropped_lpm_v4: Table<LpmKey<V4>, u32>,
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
    /// Some are of another build: theirs are to be filled from them ([`crate::handover`]).
    Succeeded,
}

/// The object with its maps, and what it succeeds to.
pub(crate) struct Loaded {
    pub ebpf: Ebpf,
    pub maps: Maps,
    pub adoption: Adoption,
    /// Pinned maps of another build. Ours of the same names are empty, and pinned aside.
    pub predecessors: Vec<Predecessor>,
}

/// A map of another build, and ours of its name.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pub name: &'static str,
    pub theirs: OwnedFd,
    pub their_shape: Shape,
    pub ours: OwnedFd,
    pub our_shape: Shape,
}

/// A pinned map, and the shape that this build wants of it.
struct Pinned {
    name: &'static str,
    map: OwnedFd,
    shape: Shape,
    wanted: Shape,
}

/// Loads the object, each map from its pin if that fits. A map that does not (another type, size, place of a
/// field or version) stays pinned, and at work in the programs that use it; ours is made beside it.
pub(crate) fn load(pins: &Pins) -> Result<Loaded, DatapathError> {
    for left in pins::names(&pins.next())? {
        pins::remove(&pins.next().join(left))?;
    }
    let present = pins::names(&pins.maps())?;
    let misfits = misfits(pins, &present)?;
    let mut loader = EbpfLoader::new();
    for name in object::MAPS {
        let replaced = misfits.iter().any(|misfit| misfit.name == name);
        let folder = if replaced { pins.next() } else { pins.maps() };
        loader.map_pin_path(name, folder.join(name));
    }
    let ebpf = loader.load(object::OBJECT).map_err(DatapathError::load)?;
    let maps = Maps::open(&ebpf)?;
    let predecessor = |Pinned { name, map, shape, wanted }| {
        let ours = duplicate(name, data(&ebpf, name)?)?;
        Ok(Predecessor { name, theirs: map, their_shape: shape, ours, our_shape: wanted })
    };
    let predecessors: Vec<_> = misfits.into_iter().map(predecessor).collect::<Result<_, DatapathError>>()?;
    let adoption = match (present.is_empty(), predecessors.is_empty()) {
        (true, _) => Adoption::Fresh,
        (false, true) => Adoption::Adopted,
        (false, false) => Adoption::Succeeded,
    };
    if adoption == Adoption::Fresh {
        // So that the next agent knows the version, also if no base is ever written.
        maps.config.put(&0, &NodeConfig { abi_version: ABI_VERSION, ..NodeConfig::default() })?;
    }
    Ok(Loaded { ebpf, maps, adoption, predecessors })
}

/// The pinned maps that this build cannot use as they are. (aya takes a pinned map without a look.)
fn misfits(pins: &Pins, present: &[String]) -> Result<Vec<Pinned>, DatapathError> {
    if present.is_empty() {
        return Ok(Vec::new());
    }
    let wanted = layout::wanted()?;
    let mut pinned = Vec::new();
    for (name, wanted) in wanted {
        if !present.iter().any(|present| present == name) {
            continue;
        }
        let data = MapData::from_pin(pins.maps().join(name))
            .map_err(|error| layout_error(name, error.to_string()))?;
        let map = duplicate(name, &data)?;
        let shape = Shape::of(name, map.as_fd())?;
        pinned.push(Pinned { name, map, shape, wanted });
    }
    let version = pinned.iter().find(|map| map.name == map_name::CONFIG).map(version).transpose()?;
    let same_version = version == Some(ABI_VERSION);
    if !same_version {
        tracing::info!(found = version, ours = ABI_VERSION, "the pinned maps are of another version");
    }
    pinned.retain(|map| {
        let transient = object::TRANSIENT_MAPS.contains(&map.name);
        let fits = map.shape.serves_as(&map.wanted, !transient);
        !fits || (!same_version && (transient || map.name == map_name::CONFIG))
    });
    Ok(pinned)
}

/// The version of whoever made a configuration map: the one field that must always be there.
fn version(config: &Pinned) -> Result<u32, DatapathError> {
    let shape = &config.shape;
    let map = config.map.try_clone();
    let map = map.map_err(|source| DatapathError::Map { map: config.name, operation: "open", source })?;
    let rows = Rows::new(config.name, map, shape.key_bytes as usize, shape.value_bytes as usize);
    let mut value = vec![0; rows.value_bytes];
    if rows.key_bytes != size_of::<u32>() || !rows.get(&0u32.to_ne_bytes(), &mut value)? {
        return Ok(0);
    }
    let mut fields = shape.fields.iter().flat_map(|fields| &fields.value);
    let field = fields.find(|field| field.name == "abi_version");
    let bytes = field.and_then(|field| value.get(field.offset..field.offset + size_of::<u32>()));
    Ok(bytes.map_or(0, table::from_bytes))
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
            frontends_v4: open(ebpf, map_name::FRONTENDS_V4)?,
            services: open(ebpf, map_name::SERVICES)?,
            slots: open(ebpf, map_name::SLOTS)?,
            backends_v4: open(ebpf, map_name::BACKENDS_V4)?,
            sources_lpm_v4: open(ebpf, map_name::SOURCES_LPM_V4)?,
            affinity: open(ebpf, map_name::AFFINITY)?,
            service_ports: open(ebpf, map_name::SERVICE_PORTS)?,
            namespaces: open(ebpf, map_name::NAMESPACES)?,
            sockets_v4: open(ebpf, map_name::SOCKETS_V4)?,
            unmasqueraded_lpm_v4: open(ebpf, map_name::UNMASQUERADED_LPM_V4)?,
            dropped_lpm_v4: open(ebpf, map_name::DROPPED_LPM_V4)?,
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
    let info = data.info().map_err(|error| layout_error(name, error.to_string()))?;
    Table::new(name, duplicate(name, data)?, info.key_size(), info.value_size())
}

fn duplicate(name: &'static str, data: &MapData) -> Result<OwnedFd, DatapathError> {
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|source| DatapathError::Map { map: name, operation: "open", source })
}

fn data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData, DatapathError> {
    match ebpf.map(name) {
        Some(
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data),
        ) => Ok(data),
        Some(_) => Err(layout_error(name, "is of an unexpected type".into())),
        None => Err(layout_error(name, "is not in the object".into())),
    }
}

fn layout_error(map: &str, text: String) -> DatapathError {
    DatapathError::Layout { map: map.into(), text }
}
