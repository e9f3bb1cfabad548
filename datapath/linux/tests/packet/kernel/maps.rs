//! The maps of one test: what user space writes, and what the programs leave behind.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, PerCpuArray, RingBuf, lpm_trie::Key},
};
use datapath_abi::{
    AbiBytes, BackendEntry, COUNTER_SLOTS, Counter, EPOCH_SHARDS, EndpointEntry, Event, FlowEntry, FlowKey,
    FrontendEntry, FrontendKey, IpcacheEntry, LpmKey, NodeConfig, NodeEntry, ServiceEntry, SlotBlock,
    SlotsKey, Source, V4, map_name,
};

use super::{Kernel, SMALL_MAP};

/// A map key or value, as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Raw<T>(T);
// SAFETY: `AbiBytes`: `repr(C)`, no implicit padding, every bit pattern valid; the wrapper is transparent.
unsafe impl<T: AbiBytes> Pod for Raw<T> {}

/// The content of the maps, without times.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub flows: BTreeMap<FlowKey<V4>, FlowEntry>,
    /// Packets and bytes by slot, summed over the CPUs; without zeros.
    pub counters: BTreeMap<u32, (u64, u64)>,
    /// The maps that only user space writes, as text.
    pub written: BTreeMap<String, String>,
}

impl Snapshot {
    /// Packets and bytes by slot that were counted since `before`.
    pub fn counters_since(&self, before: &Self) -> BTreeMap<u32, (u64, u64)> {
        let increment = |(slot, (packets, bytes)): (&u32, &(u64, u64))| {
            let (old_packets, old_bytes) = before.counters.get(slot).copied().unwrap_or_default();
            let increment = (packets - old_packets, bytes - old_bytes);
            (increment != (0, 0)).then_some((*slot, increment))
        };
        self.counters.iter().filter_map(increment).collect()
    }
}

impl Kernel {
    /// Writes an entry.
    pub fn set<K: AbiBytes, V: AbiBytes>(&mut self, name: &str, key: &K, value: &V) {
        let map = self.ebpf.map_mut(name).expect("the object has the map");
        let (key, value) = (Raw(*key), Raw(*value));
        let result = match map {
            Map::Array(_) => {
                // SAFETY: array keys are u32.
                let index = unsafe { std::mem::transmute_copy(&key) };
                Array::<_, Raw<V>>::try_from(map).expect("sizes agree").set(index, value, 0)
            }
            Map::HashMap(_) | Map::LruHashMap(_) => {
                HashMap::<_, Raw<K>, Raw<V>>::try_from(map).expect("sizes agree").insert(key, value, 0)
            }
            Map::LpmTrie(_) if size_of::<K>() == size_of::<LpmKey<Source<V4>>>() => {
                // SAFETY: in these tests only the trie of source ranges has keys of this size.
                let key: LpmKey<Source<V4>> = unsafe { std::mem::transmute_copy(&key) };
                let key = Key::new(key.prefix_len, Raw(key.address));
                LpmTrie::<_, Raw<Source<V4>>, Raw<V>>::try_from(map)
                    .expect("sizes agree")
                    .insert(&key, value, 0)
            }
            Map::LpmTrie(_) => {
                // SAFETY: the keys of the other tries in these tests are `LpmKey<V4>`.
                let key: LpmKey<V4> = unsafe { std::mem::transmute_copy(&key) };
                let key = Key::new(key.prefix_len, key.address);
                LpmTrie::<_, V4, Raw<V>>::try_from(map).expect("sizes agree").insert(&key, value, 0)
            }
            _ => panic!("{name} is not written by user space"),
        };
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Reads an entry of a hash table.
    pub fn get<K: AbiBytes, V: AbiBytes>(&self, name: &str, key: &K) -> Option<V> {
        let map = HashMap::<_, Raw<K>, Raw<V>>::try_from(self.map(name)).expect("sizes agree");
        map.get(&Raw(*key), 0).ok().map(|value| value.0)
    }

    /// Deletes an entry of a hash table.
    pub fn remove<K: AbiBytes, V: AbiBytes>(&mut self, name: &str, key: &K) {
        let map = self.ebpf.map_mut(name).expect("the object has the map");
        let mut map = HashMap::<_, Raw<K>, Raw<V>>::try_from(map).expect("sizes agree");
        map.remove(&Raw(*key)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// The flow entry with its times.
    pub fn flow(&self, key: &FlowKey<V4>) -> Option<FlowEntry> {
        self.get(map_name::FLOWS_V4, key)
    }

    /// Writes a flow entry.
    pub fn set_flow(&mut self, (key, entry): (FlowKey<V4>, FlowEntry)) {
        self.set(map_name::FLOWS_V4, &key, &entry);
    }

    /// Deletes a flow entry, which must exist.
    pub fn remove_flow(&mut self, key: &FlowKey<V4>) {
        self.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, key);
    }

    /// The events since the last call, without times.
    pub fn events(&mut self) -> Vec<Event> {
        let map = self.ebpf.map_mut(map_name::EVENTS).expect("in the object");
        let mut ring = RingBuf::try_from(map).expect("a ring");
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            assert_eq!(bytes.len(), size_of::<Event>());
            // SAFETY: the record has the size of an event, for which all bit patterns are valid (`AbiBytes`).
            let event: Event = unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() };
            assert!(event.time_ns > 0);
            events.push(Event { time_ns: 0, ..event });
        }
        events
    }

    /// The content of all maps.
    pub fn snapshot(&self) -> Snapshot {
        let mut written = BTreeMap::new();
        self.dump_array::<NodeConfig>(&mut written, map_name::CONFIG, 1);
        self.dump_array::<NodeEntry>(&mut written, map_name::NODES, SMALL_MAP);
        self.dump_array::<u32>(&mut written, map_name::EPOCHS, EPOCH_SHARDS);
        self.dump_array::<ServiceEntry>(&mut written, map_name::SERVICES, SMALL_MAP);
        self.dump_array::<BackendEntry<V4>>(&mut written, map_name::BACKENDS_V4, SMALL_MAP);
        self.dump_hash::<FrontendKey<V4>, FrontendEntry>(&mut written, map_name::FRONTENDS_V4);
        self.dump_hash::<SlotsKey, SlotBlock>(&mut written, map_name::SLOTS);
        self.dump_hash::<u32, EndpointEntry>(&mut written, map_name::ENDPOINTS_BY_IFINDEX);
        self.dump_hash::<V4, EndpointEntry>(&mut written, map_name::ENDPOINTS_V4);
        self.dump_hash::<V4, IpcacheEntry>(&mut written, map_name::IPCACHE_V4);
        self.dump_hash::<V4, u32>(&mut written, map_name::NODE_BY_ADDRESS_V4);
        self.dump_trie::<IpcacheEntry>(&mut written, map_name::IPCACHE_LPM_V4);
        self.dump_trie::<u32>(&mut written, map_name::UNMASQUERADED_LPM_V4);
        Snapshot { flows: self.flows(), counters: self.counters(), written }
    }

    fn flows(&self) -> BTreeMap<FlowKey<V4>, FlowEntry> {
        let map = HashMap::<_, Raw<FlowKey<V4>>, Raw<FlowEntry>>::try_from(self.map(map_name::FLOWS_V4));
        let rows = map.expect("sizes agree");
        rows.iter()
            .map(|row| {
                let (key, entry) = row.expect("a row");
                (key.0, FlowEntry { created_ns: 0, last_seen_ns: 0, ..entry.0 })
            })
            .collect()
    }

    fn counters(&self) -> BTreeMap<u32, (u64, u64)> {
        let map =
            PerCpuArray::<_, Raw<Counter>>::try_from(self.map(map_name::COUNTERS)).expect("sizes agree");
        (0..COUNTER_SLOTS)
            .filter_map(|slot| {
                let cpus = map.get(&slot, 0).expect("a slot");
                let sum = cpus.iter().fold((0, 0), |(packets, bytes), Raw(counter)| {
                    (packets + counter.packets, bytes + counter.bytes)
                });
                (sum != (0, 0)).then_some((slot, sum))
            })
            .collect()
    }

    fn dump_array<V: AbiBytes + Default + PartialEq + std::fmt::Debug>(
        &self,
        written: &mut BTreeMap<String, String>,
        name: &str,
        len: u32,
    ) {
        let map = Array::<_, Raw<V>>::try_from(self.map(name)).expect("sizes agree");
        for index in 0..len {
            let value = map.get(&index, 0).expect("an index").0;
            if value != V::default() {
                written.insert(format!("{name} {index}"), format!("{value:?}"));
            }
        }
    }

    fn dump_hash<K: AbiBytes + std::fmt::Debug, V: AbiBytes + std::fmt::Debug>(
        &self,
        written: &mut BTreeMap<String, String>,
        name: &str,
    ) {
        let map = HashMap::<_, Raw<K>, Raw<V>>::try_from(self.map(name)).expect("sizes agree");
        for row in map.iter() {
            let (key, value) = row.expect("a row");
            written.insert(format!("{name} {:?}", key.0), format!("{:?}", value.0));
        }
    }

    fn dump_trie<V: AbiBytes + std::fmt::Debug>(&self, written: &mut BTreeMap<String, String>, name: &str) {
        let trie = LpmTrie::<_, V4, Raw<V>>::try_from(self.map(name)).expect("sizes agree");
        for row in trie.iter() {
            let (key, value) = row.expect("a row");
            written.insert(format!("{name} {:?}/{}", key.data(), key.prefix_len()), format!("{:?}", value.0));
        }
    }

    fn map(&self, name: &str) -> &Map {
        self.ebpf.map(name).expect("the object has the map")
    }
}
