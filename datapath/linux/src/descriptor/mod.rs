//! How each table of plans lies in the kernel: the list of maps, and a file for each table. Nothing else in this crate
//! names a table.
//!
//! A table whose rows are entries of one map says how a row is encoded ([`OneMap`]); writing, deleting and observing
//! follow. The other tables say these three themselves ([`KernelTable`]): the base and endpoints are devices, routes are
//! in the stack, and nodes, the ipcache, services and frontends lie in several maps.

pub(crate) mod backend;
pub(crate) mod base;
pub(crate) mod endpoint;
pub(crate) mod frontend;
pub(crate) mod ipcache;
mod node;
mod route;
pub(crate) mod service;
pub(crate) mod slots;
pub(crate) mod source_range;

use std::{collections::BTreeMap, net::IpAddr};

use datapath_abi::{
    AbiBytes, AffinityEntry, AffinityKey, BackendEntry, EndpointEntry, FlowEntry, FlowKey, FrontendEntry,
    FrontendKey, IpcacheEntry, LpmKey, NamespaceEntry, NodeConfig, NodeEntry, ServiceEntry, SlotBlock,
    SlotsKey, SocketEntry, SocketKey, Source, V4,
};
use datapath_plan::{Base, Observed, OpFailure, Row, ServiceId, lb::SlotTable};
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::{
    datapath::Datapath, device::BaseDevices, error::DatapathError, maps::maps, netlink::Link, table::Table,
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

pub(crate) type Answer = Result<(), DatapathError>;

/// What a step may ask of the plan that it belongs to.
pub(crate) struct Progress<'a> {
    /// [`datapath_plan::Plan::slot_tables`].
    pub slot_tables: &'a BTreeMap<ServiceId, SlotTable>,
    /// The failures of earlier steps.
    pub failures: &'a [OpFailure],
}

/// An observation under way.
pub(crate) struct Observation {
    pub observed: Observed,
    /// All devices of the node.
    pub links: Vec<Link>,
    /// The base, if its devices and its configuration agree.
    pub base: Option<(Base, BaseDevices)>,
}

/// How the rows of a table are written, deleted and read.
pub(crate) trait KernelTable: Row {
    /// Makes or changes rows. Repeating it changes nothing. An answer for each row, in order.
    async fn put(
        datapath: &mut Datapath,
        rows: &[(Self::Key, &Self)],
        progress: &Progress<'_>,
    ) -> Vec<Answer>;

    /// Deletes rows; a row that is not there counts as deleted. An answer for each key, in order.
    async fn delete(datapath: &mut Datapath, keys: &[Self::Key]) -> Vec<Answer>;

    /// Reads the whole table. Rows that are there in part are named in `broken`, and left out or shown as rows that nobody
    /// wants, so that the diff makes them again or removes them.
    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer;
}

/// A table whose rows are the entries of one map.
pub(crate) trait OneMap: Row {
    type MapKey: AbiBytes;
    type MapValue: AbiBytes;

    fn map(maps: &Maps) -> &Table<Self::MapKey, Self::MapValue>;

    /// # Errors
    /// [`DatapathError::Unsupported`] for a key that the map cannot hold.
    fn encode_key(key: &Self::Key) -> Result<Self::MapKey, DatapathError>;

    /// # Errors
    /// [`DatapathError::Unsupported`] for a row that the map cannot hold.
    fn encode(&self) -> Result<Self::MapValue, DatapathError>;

    /// The row of an entry; `None` for an entry that cannot be decoded.
    fn decode(key: &Self::MapKey, value: &Self::MapValue) -> Option<(Self::Key, Self)>;
}

impl<R: OneMap> KernelTable for R {
    async fn put(datapath: &mut Datapath, rows: &[(R::Key, &R)], _: &Progress<'_>) -> Vec<Answer> {
        let entry = |(key, row): &(R::Key, &R)| Ok((R::encode_key(key)?, row.encode()?));
        put_each(R::map(&datapath.maps), rows.iter().map(entry))
    }

    async fn delete(datapath: &mut Datapath, keys: &[R::Key]) -> Vec<Answer> {
        delete_each(R::map(&datapath.maps), keys.iter().map(R::encode_key))
    }

    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let tables = &mut observation.observed.tables;
        R::map(&datapath.maps).for_each_entry(|key, value| {
            if let Some((key, row)) = R::decode(key, value) {
                tables.set(key, Some(row));
            }
        })
    }
}

/// Writes the entries that could be encoded together. An answer for each entry, in order.
pub(crate) fn put_each<K: AbiBytes, V: AbiBytes>(
    map: &Table<K, V>,
    entries: impl Iterator<Item = Result<(K, V), DatapathError>>,
) -> Vec<Answer> {
    do_each(entries, |entries| map.put_all(entries))
}

/// Deletes the entries whose keys could be encoded together. An answer for each key, in order.
pub(crate) fn delete_each<K: AbiBytes, V: AbiBytes>(
    map: &Table<K, V>,
    keys: impl Iterator<Item = Result<K, DatapathError>>,
) -> Vec<Answer> {
    do_each(keys, |keys| map.delete_all(keys))
}

fn do_each<T>(
    items: impl Iterator<Item = Result<T, DatapathError>>,
    all: impl FnOnce(&[T]) -> Vec<(usize, DatapathError)>,
) -> Vec<Answer> {
    let (mut good, mut places, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for (place, item) in items.enumerate() {
        answers.push(item.map(|item| {
            good.push(item);
            places.push(place);
        }));
    }
    for (index, error) in all(&good) {
        answers[places[index]] = Err(error);
    }
    answers
}

pub(crate) fn first_failure(failed: Vec<(usize, DatapathError)>) -> Answer {
    failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// One failure as the answer to every step.
pub(crate) fn repeat(steps: usize, error: &DatapathError) -> Vec<Answer> {
    let text = error.chain();
    (0..steps).map(|_| Err(DatapathError::NotReady(text.clone()))).collect()
}

/// Makes a set of networks in a trie what is wanted: new ones first.
pub(crate) fn set_networks<'a>(
    map: &Table<LpmKey<V4>, u32>,
    networks: impl Iterator<Item = &'a Ipv4Network>,
) -> Answer {
    let wanted: BTreeMap<(V4, u32), LpmKey<V4>> =
        networks.map(|network| lpm_key(*network)).map(|key| ((key.address, key.prefix_len), key)).collect();
    let entries: Vec<_> = wanted.values().map(|key| (*key, 1)).collect();
    first_failure(map.put_all(&entries))?;
    let mut stale = Vec::new();
    map.for_each(|key, _| {
        if !wanted.contains_key(&(key.address, key.prefix_len)) {
            stale.push(*key);
        }
    })?;
    first_failure(map.delete_all(&stale))
}

/// The networks in a trie, as far as they are networks.
pub(crate) fn networks(map: &Table<LpmKey<V4>, u32>) -> Result<Vec<IpNetwork>, DatapathError> {
    let mut networks = Vec::new();
    map.for_each(|key, _| networks.extend(network(key)))?;
    Ok(networks)
}

pub(crate) fn lpm_key(network: Ipv4Network) -> LpmKey<V4> {
    LpmKey { prefix_len: network.prefix().into(), address: network.network().octets() }
}

pub(crate) fn network(key: &LpmKey<V4>) -> Option<IpNetwork> {
    let length = u8::try_from(key.prefix_len).ok()?;
    Ipv4Network::new(key.address.into(), length).ok().map(IpNetwork::V4)
}

/// The bytes of an IPv4 address; this version has maps for no other family.
pub(crate) fn v4(address: IpAddr) -> Result<V4, DatapathError> {
    match address {
        IpAddr::V4(address) => Ok(address.octets()),
        IpAddr::V6(_) => Err(DatapathError::Unsupported(format!("IPv6 address {address}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use datapath_plan::{RouteValue, Row, RowVisitor, Tables};

    use super::*;

    #[test]
    fn map_list_is_what_the_object_holds() {
        let object = aya_obj::Object::parse(crate::object::OBJECT).expect("the object parses");
        // Sections of constants are maps, too.
        let held: BTreeSet<_> =
            object.maps.keys().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
        let listed: BTreeSet<_> = MAPS.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, held);
        assert_eq!(listed.len(), MAPS.len(), "a map twice");
    }

    #[test]
    fn map_list_is_that_of_the_architecture() {
        // Included, as the tests also run in emulated machines that have no checkout.
        let page = include_str!("../../../../docs/ARCHITECTURE.md");
        let told: Vec<&str> = page.lines().filter(|line| line.starts_with("| `WARREN_")).collect();
        let row = |(name, content): &(&str, Content)| match content {
            Content::Rows(table) => format!("| `{name}` | {table} | |"),
            Content::NoState(reason) => format!("| `{name}` | | {reason} |"),
        };
        assert_eq!(told, MAPS.iter().map(row).collect::<Vec<_>>());
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
