//! Opening the maps: made if they are not there, adopted if this build can use them as they are.

use std::os::fd::{AsFd, OwnedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapType},
};
use datapath_abi::{ABI_VERSION, AbiBytes, NodeConfig, map_name};

use crate::{
    descriptor::{MAPS, Maps},
    error::DatapathError,
    layout::{self, Shape},
    object, pins,
    pins::Pins,
    rows::Rows,
    table::{self, Table},
};

/// Declares the maps of the object: those that user space reads and writes as typed tables, of which flows are shown by
/// [`crate::flows`], and the others.
macro_rules! maps {
    (
        typed { $($field:ident: $NAME:ident [$K:ty => $V:ty], $content:expr;)+ }
        shown_elsewhere { $($flows:ident: $FLOWS:ident [$FK:ty => $FV:ty], $flows_content:expr;)+ }
        other { $($OTHER:ident, $other_content:expr;)+ }
    ) => {
        /// Every map that user space reads or writes.
        #[derive(Debug)]
        pub(crate) struct Maps {
            $(pub $field: $crate::table::Table<$K, $V>,)+
            $(pub $flows: $crate::table::Table<$FK, $FV>,)+
            pub counters: $crate::counters::CounterTable,
        }

        /// All maps of the object by name, with what they hold.
        pub const MAPS: &[(&str, Content)] = &[
            $((datapath_abi::map_name::$NAME, $content),)+
            $((datapath_abi::map_name::$FLOWS, $flows_content),)+
            $((datapath_abi::map_name::$OTHER, $other_content),)+
        ];

        impl Maps {
            pub(crate) fn open(ebpf: &aya::Ebpf) -> Result<Self, $crate::error::DatapathError> {
                Ok(Self {
                    $($field: $crate::maps::open(ebpf, datapath_abi::map_name::$NAME)?,)+
                    $($flows: $crate::maps::open(ebpf, datapath_abi::map_name::$FLOWS)?,)+
                    counters: $crate::counters::CounterTable::open($crate::maps::data(ebpf, datapath_abi::map_name::COUNTERS)?)?,
                })
            }

            /// A map by name, to be shown; `None` for a map without a type, and for a name that is no map's.
            pub(crate) fn shown(&self, name: &str) -> Option<&dyn $crate::dump::Shown> {
                match name {
                    $(datapath_abi::map_name::$NAME => Some(&self.$field),)+
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use maps;

/// The maps whose content is of no use to another build: each build makes its own.
pub(crate) const TRANSIENT_MAPS: [&str; 3] = [map_name::EVENTS, map_name::BUDGETS, map_name::SCRATCH];

/// The fate of the pinned maps of an earlier agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Adoption {
    /// There were no pinned maps.
    Fresh,
    /// All of them are used as they are.
    Adopted,
    /// Some are of another build: our maps are filled from them ([`crate::handover`]).
    Succeeded,
}

/// The loaded object with its maps, and the maps of another build that they replace.
pub(crate) struct Loaded {
    pub ebpf: Ebpf,
    pub maps: Maps,
    pub adoption: Adoption,
    /// Pinned maps of another build. Our maps of the same names are empty, and pinned aside.
    pub predecessors: Vec<Predecessor>,
}

/// A map of another build, and our map of the same name.
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

/// Loads the object, each map from its pin if the pinned map fits. A pinned map that does not fit (another type, size, field
/// offset or version) stays pinned and in use by the programs of its build; our map is made beside it.
pub(crate) fn load(pins: &Pins) -> Result<Loaded, DatapathError> {
    for left in pins::names(&pins.next())? {
        pins::remove(&pins.next().join(left))?;
    }
    let present = pins::names(&pins.maps())?;
    let misfits = misfits(pins, &present)?;
    let mut loader = EbpfLoader::new();
    for (name, _) in MAPS {
        let replaced = misfits.iter().any(|misfit| misfit.name == *name);
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
        // The next agent reads the version here, also if no base is ever written.
        maps.config.put(&0, &NodeConfig { abi_version: ABI_VERSION, ..NodeConfig::default() })?;
    }
    Ok(Loaded { ebpf, maps, adoption, predecessors })
}

/// The pinned maps that this build cannot use as they are. (aya does not compare a pinned map with its definition.)
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
        let transient = TRANSIENT_MAPS.contains(&map.name);
        let fits = map.shape.serves_as(&map.wanted, !transient);
        !fits || (!same_version && (transient || map.name == map_name::CONFIG))
    });
    Ok(pinned)
}

/// The version of the build that made a configuration map: the one field that every version has.
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

pub(crate) fn open<K: AbiBytes, V: AbiBytes>(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<Table<K, V>, DatapathError> {
    open_data(name, data(ebpf, name)?)
}

fn open_data<K: AbiBytes, V: AbiBytes>(
    name: &'static str,
    data: &MapData,
) -> Result<Table<K, V>, DatapathError> {
    let info = data.info().map_err(|error| layout_error(name, error.to_string()))?;
    let kind = info.map_type().map_err(|error| layout_error(name, error.to_string()))?;
    Table::new(name, duplicate(name, data)?, kind == MapType::Array, info.key_size(), info.value_size())
}

fn duplicate(name: &'static str, data: &MapData) -> Result<OwnedFd, DatapathError> {
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|source| DatapathError::Map { map: name, operation: "open", source })
}

pub(crate) fn data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData, DatapathError> {
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
