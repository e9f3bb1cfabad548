//! The list of maps, and the maps opened as typed tables: made if they are not there, adopted if this build can use
//! them as they are.

use std::os::fd::{AsFd, OwnedFd};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapType},
};
use datapath_abi::{
    ABI_VERSION, AbiBytes, AffinityEntry, AffinityKey, BackendEntry, EndpointEntry, FlowEntry, FlowKey,
    FrontendEntry, FrontendKey, IpcacheEntry, LpmKey, NamespaceEntry, NodeConfig, NodeEntry, ServiceEntry,
    SlotBlock, SlotsKey, SocketEntry, SocketKey, Source, V4, map_name,
};

use crate::{
    counters::CounterTable,
    dump::Shown,
    error::DatapathError,
    layout::{self, Shape},
    object, pins,
    pins::Pins,
    rows::Rows,
    table::{self, Table},
};

/// What a map holds, which says who compares it with what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Rows of the plan's table of this name, or a part of them: audits compare them with what is wanted.
    Rows(&'static str),
    /// No state that anybody wants, for this reason: audits leave it alone.
    NoState(&'static str),
}
use Content::{NoState, Rows as Of};

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
            $(pub $field: Table<$K, $V>,)+
            $(pub $flows: Table<$FK, $FV>,)+
            pub counters: CounterTable,
        }

        /// All maps of the object by name, with what they hold.
        pub const MAPS: &[(&str, Content)] = &[
            $((map_name::$NAME, $content),)+
            $((map_name::$FLOWS, $flows_content),)+
            $((map_name::$OTHER, $other_content),)+
        ];

        impl Maps {
            fn open(ebpf: &Ebpf) -> Result<Self, DatapathError> {
                Ok(Self {
                    $($field: open(ebpf, map_name::$NAME)?,)+
                    $($flows: open(ebpf, map_name::$FLOWS)?,)+
                    counters: CounterTable::open(data(ebpf, map_name::COUNTERS)?)?,
                })
            }

            /// A map by name, to be shown; `None` for a map without a type, and for a name that is no map's.
            pub(crate) fn shown(&self, name: &str) -> Option<&dyn Shown> {
                match name {
                    $(map_name::$NAME => Some(&self.$field),)+
                    _ => None,
                }
            }
        }
    };
}

maps! {
    typed {
        config: CONFIG [u32 => NodeConfig], Of("base");
        unmasqueraded_lpm_v4: UNMASQUERADED_LPM_V4 [LpmKey<V4> => u32], Of("base");
        dropped_lpm_v4: DROPPED_LPM_V4 [LpmKey<V4> => u32], Of("base");
        nodes: NODES [u32 => NodeEntry], Of("nodes");
        node_by_address_v4: NODE_BY_ADDRESS_V4 [V4 => u32], Of("nodes");
        ipcache_v4: IPCACHE_V4 [V4 => IpcacheEntry], Of("ipcache");
        ipcache_lpm_v4: IPCACHE_LPM_V4 [LpmKey<V4> => IpcacheEntry], Of("ipcache");
        endpoints_by_ifindex: ENDPOINTS_BY_IFINDEX [u32 => EndpointEntry], Of("endpoints");
        endpoints_v4: ENDPOINTS_V4 [V4 => EndpointEntry], Of("endpoints");
        namespaces: NAMESPACES [u64 => NamespaceEntry], Of("endpoints");
        backends_v4: BACKENDS_V4 [u32 => BackendEntry<V4>], Of("backends");
        services: SERVICES [u32 => ServiceEntry], Of("services");
        slots: SLOTS [SlotsKey => SlotBlock], Of("services");
        sources_lpm_v4: SOURCES_LPM_V4 [LpmKey<Source<V4>> => u32], Of("services");
        frontends_v4: FRONTENDS_V4 [FrontendKey<V4> => FrontendEntry], Of("frontends");
        service_ports: SERVICE_PORTS [u32 => u64], Of("frontends");
        epochs: EPOCHS [u32 => u32], NoState("epochs only rise: any value is right");
        affinity: AFFINITY [AffinityKey => AffinityEntry], NoState("the programs write it, by the traffic");
        sockets_v4: SOCKETS_V4 [SocketKey<V4> => SocketEntry<V4>], NoState("the programs write it, by the sockets");
    }
    shown_elsewhere {
        flows_v4: FLOWS_V4 [FlowKey<V4> => FlowEntry], NoState("the programs write it, by the traffic");
    }
    other {
        COUNTERS, NoState("the programs count");
        FRAGMENTS_V4, NoState("the programs write it, by the traffic");
        EVENTS, NoState("a ring of reports");
        BUDGETS, NoState("the programs limit their reports by it");
        SCRATCH, NoState("memory of one program run");
    }
}

/// The maps whose content is of no use to another build: each build makes its own.
pub(crate) const TRANSIENT_MAPS: [&str; 3] = [map_name::EVENTS, map_name::BUDGETS, map_name::SCRATCH];

/// The fate of the pinned maps of an earlier agent.
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
        let transient = TRANSIENT_MAPS.contains(&map.name);
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

fn open<K: AbiBytes, V: AbiBytes>(ebpf: &Ebpf, name: &'static str) -> Result<Table<K, V>, DatapathError> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use datapath_plan::{RouteValue, Row, RowVisitor, Tables};

    use super::*;

    #[test]
    fn map_list_is_what_the_object_holds() {
        let object = aya_obj::Object::parse(object::OBJECT).expect("the object parses");
        // Sections of constants are maps, too.
        let held: BTreeSet<_> =
            object.maps.keys().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
        let listed: BTreeSet<_> = MAPS.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, held);
        assert_eq!(listed.len(), MAPS.len(), "a map twice");
    }

    /// A map of state is part of a table that plans know, and so of audits, `state diff` and `/v1/state`.
    #[test]
    fn map_of_state_belongs_to_a_table_of_plans() {
        struct Names(BTreeSet<&'static str>);
        impl RowVisitor for Names {
            fn table(&mut self, name: &'static str) {
                self.0.insert(name);
            }
            fn row<R: Row>(&mut self, _: R::Key, _: &R) {}
        }
        let mut names = Names(BTreeSet::new());
        Tables::default().visit(&mut names);
        // Routes are in the stack.
        names.0.remove(RouteValue::NAME);
        let rows = |(_, content): &(&str, Content)| match content {
            Content::Rows(table) => Some(*table),
            Content::NoState(_) => None,
        };
        let described: BTreeSet<&str> = MAPS.iter().filter_map(rows).collect();
        assert_eq!(described, names.0);
    }
}
