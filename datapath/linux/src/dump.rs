//! The maps as rows that people and `jq` can read, sorted.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    path::Path,
};

use aya::maps::MapInfo as KernelMapInfo;
use datapath_abi::{
    AbiBytes, AffinityEntry, AffinityKey, BackendEntry, EndpointEntry, FrontendEntry, FrontendKey,
    IpcacheEntry, LpmKey, NamespaceEntry, NodeConfig, NodeEntry, ServiceEntry, SlotBlock, SlotsKey,
    SocketEntry, SocketKey, Source, V4, map_name, namespace_kind, node_flags, service_flags, socket_kind,
};
use datapath_plan::{BackendValue, FrontendKind, Mac, Protocol};
use ipnetwork::Ipv4Network;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    datapath::Datapath,
    descriptor::{backend, frontend, source_range},
    error::DatapathError,
    flows::FlowFilter,
    maps::MAPS,
    table::Table,
};

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

macro_rules! shown_numbers {
    ($($number:ty),+) => {$(
        impl ShownKey for $number {
            fn order(&self) -> impl Ord {
                *self
            }

            fn show(&self) -> Option<Value> {
                Some(json!(self))
            }
        }
    )+};
}
shown_numbers!(u32, u64);

impl ShownKey for V4 {
    fn order(&self) -> impl Ord {
        *self
    }

    fn show(&self) -> Option<Value> {
        Some(json!(Ipv4Addr::from(*self)))
    }
}

impl ShownKey for LpmKey<V4> {
    fn order(&self) -> impl Ord {
        (self.address, self.prefix_len)
    }

    fn show(&self) -> Option<Value> {
        let length = u8::try_from(self.prefix_len).ok()?;
        Some(json!(Ipv4Network::new(self.address.into(), length).ok()?))
    }
}

impl ShownKey for LpmKey<Source<V4>> {
    fn order(&self) -> impl Ord {
        (self.address, self.prefix_len)
    }

    fn show(&self) -> Option<Value> {
        Some(json!(format!("{} {}", self.address.service, source_range::range(self)?)))
    }
}

impl ShownKey for FrontendKey<V4> {
    fn order(&self) -> impl Ord {
        *self
    }

    fn show(&self) -> Option<Value> {
        Some(json!(frontend::decode_key(self)?.to_string()))
    }
}

impl ShownKey for SlotsKey {
    fn order(&self) -> impl Ord {
        *self
    }

    fn show(&self) -> Option<Value> {
        Some(json!(format!("{} {}", self.table, self.block)))
    }
}

impl ShownKey for AffinityKey {
    fn order(&self) -> impl Ord {
        *self
    }

    fn show(&self) -> Option<Value> {
        let client = match u32::try_from(self.client) {
            Ok(address) => json!(Ipv4Addr::from(address)),
            Err(_) => json!(format!("{:#x}", self.client)),
        };
        Some(json!({ "client": client, "service": self.service }))
    }
}

impl ShownKey for SocketKey<V4> {
    fn order(&self) -> impl Ord {
        *self
    }

    fn show(&self) -> Option<Value> {
        let kind = if self.kind == socket_kind::BACKEND { "backend" } else { "frontend" };
        Some(json!({ "socket": self.cookie, kind: socket_address(self.address, self.port_be) }))
    }
}

fn socket_address(address: V4, port_be: [u8; 2]) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port_be))
}

impl ShownValue<u32> for NodeConfig {
    fn show(&self, _: &u32) -> Value {
        json!({
            "abi_version": self.abi_version,
            "native": self.flags & node_flags::NATIVE != 0,
            "legacy_host_routing": self.flags & node_flags::LEGACY_HOST_ROUTING != 0,
            "masquerade": self.flags & node_flags::MASQUERADE != 0,
            "host_ifindex": self.host_ifindex,
            "net_ifindex": self.net_ifindex,
            "vxlan_ifindex": self.vxlan_ifindex,
            "underlay_ifindex": self.underlay_ifindex,
            "gateway": Ipv4Addr::from(self.gateway_v4),
            "underlay": Ipv4Addr::from(self.underlay_v4),
            "pod_mtu_bytes": self.pod_mtu_bytes,
            "underlay_mtu_bytes": self.underlay_mtu_bytes,
            "tunnel_port": self.tunnel_port,
            "masquerade_ports": [self.masquerade_port_min, self.masquerade_port_max],
            "host_mac": Mac(self.host_mac).to_string(),
        })
    }
}

impl ShownValue<u32> for NodeEntry {
    fn show(&self, _: &u32) -> Value {
        json!({ "underlay": Ipv6Addr::from(self.underlay).to_canonical(), "family": self.family })
    }
}

/// The index of a node.
impl ShownValue<V4> for u32 {
    fn show(&self, _: &V4) -> Value {
        json!({ "node": self })
    }
}

/// A mark that the prefix is there.
impl<A> ShownValue<LpmKey<A>> for u32 {
    fn show(&self, _: &LpmKey<A>) -> Value {
        json!(self)
    }
}

/// An epoch.
impl ShownValue<u32> for u32 {
    fn show(&self, _: &u32) -> Value {
        json!(self)
    }
}

/// Bits.
impl ShownValue<u32> for u64 {
    fn show(&self, _: &u32) -> Value {
        json!(self)
    }
}

impl<K> ShownValue<K> for EndpointEntry {
    fn show(&self, _: &K) -> Value {
        json!({
            "ifindex": self.ifindex,
            "endpoint": self.id,
            "identity": self.identity,
            "address": Ipv4Addr::from(self.address_v4),
            "mac": Mac(self.mac).to_string(),
            "host_mac": Mac(self.host_mac).to_string(),
        })
    }
}

impl<K> ShownValue<K> for IpcacheEntry {
    fn show(&self, _: &K) -> Value {
        json!({ "identity": self.identity, "node": self.node })
    }
}

impl ShownValue<FrontendKey<V4>> for FrontendEntry {
    fn show(&self, _: &FrontendKey<V4>) -> Value {
        let kind = frontend::decode_kind(self.kind).map(FrontendKind::word);
        json!({ "service": self.service, "kind": kind })
    }
}

impl ShownValue<u32> for ServiceEntry {
    fn show(&self, _: &u32) -> Value {
        let (table, slots) = self.table();
        json!({
            "table": table,
            "slots": slots,
            "members": self.members,
            "maglev": self.flags & service_flags::MAGLEV != 0,
            "dsr": self.flags & service_flags::DSR != 0,
            "sources": self.flags & service_flags::SOURCES != 0,
            "affinity_seconds": self.affinity_seconds,
        })
    }
}

impl ShownValue<SlotsKey> for SlotBlock {
    fn show(&self, _: &SlotsKey) -> Value {
        json!(self.slots.to_vec())
    }
}

impl ShownValue<u32> for BackendEntry<V4> {
    fn show(&self, _: &u32) -> Value {
        let BackendValue { service, address, port, weight, state } = backend::decode(self);
        json!({
            "service": service.0,
            "address": address,
            "port": port,
            "weight": weight,
            "state": state.word(),
        })
    }
}

impl ShownValue<AffinityKey> for AffinityEntry {
    fn show(&self, _: &AffinityKey) -> Value {
        json!({ "backend": self.backend, "last_seen_ns": self.last_seen_ns })
    }
}

impl ShownValue<u64> for NamespaceEntry {
    fn show(&self, _: &u64) -> Value {
        let is_endpoint = self.kind != namespace_kind::NODE;
        json!({
            "endpoint": is_endpoint.then_some(self.endpoint),
            "inode": self.inode,
            "address": is_endpoint.then(|| Ipv4Addr::from(self.address_v4)),
        })
    }
}

impl ShownValue<SocketKey<V4>> for SocketEntry<V4> {
    fn show(&self, key: &SocketKey<V4>) -> Value {
        let kind = if key.kind == socket_kind::BACKEND { "frontend" } else { "backend" };
        json!({
            kind: socket_address(self.address, self.port_be),
            "protocol": self.protocol,
            "service": self.service,
            "number": self.backend,
            "namespace": self.namespace,
        })
    }
}
