//! The maps as rows that people and `jq` can read, sorted.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    path::Path,
};

use aya::maps::MapInfo as KernelMapInfo;
use datapath_abi::{
    EndpointEntry, IpcacheEntry, LpmKey, Source, V4, map_name, namespace_kind, node_flags, service_flags,
    socket_kind,
};
use datapath_plan::{BackendValue, FrontendKind, Mac, Protocol};
use ipnetwork::Ipv4Network;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{datapath::Datapath, error::DatapathError, flows::FlowFilter, object, service, source_range};

/// A map of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapInfo {
    /// Its name in the object and as pinned.
    pub name: String,
    /// The kernel's number for it.
    pub id: u32,
    /// Its type, as bpftool calls it.
    pub kind: String,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Entries at the most; bytes of the ring.
    pub max_entries: u32,
    /// Entries in use; `None` where that is no question.
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

impl Datapath {
    /// All maps with their fill, by name. Counts entries by reading them: O(entries).
    ///
    /// # Errors
    /// [`DatapathError::Map`] or [`DatapathError::Layout`] if the kernel refuses to be read.
    pub fn map_list(&self) -> Result<Vec<MapInfo>, DatapathError> {
        let mut maps = Vec::new();
        for name in object::MAPS {
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
        Ok(MapInfo {
            name: name.into(),
            id: info.id(),
            kind: format!("{:?}", info.map_type().map_err(fail)?),
            key_bytes: info.key_size(),
            value_bytes: info.value_size(),
            max_entries: info.max_entries(),
            entries: self.fill(name)?,
        })
    }

    /// Entries in use. An array always has all; what counts there is what is not zero.
    fn fill(&self, name: &str) -> Result<Option<u64>, DatapathError> {
        let maps = &self.maps;
        Ok(Some(match name {
            map_name::ENDPOINTS_BY_IFINDEX => maps.endpoints_by_ifindex.count(|_, _| true)?,
            map_name::ENDPOINTS_V4 => maps.endpoints_v4.count(|_, _| true)?,
            map_name::IPCACHE_V4 => maps.ipcache_v4.count(|_, _| true)?,
            map_name::IPCACHE_LPM_V4 => maps.ipcache_lpm_v4.count(|_, _| true)?,
            map_name::NODE_BY_ADDRESS_V4 => maps.node_by_address_v4.count(|_, _| true)?,
            map_name::FLOWS_V4 => maps.flows_v4.count(|_, _| true)?,
            map_name::DROPPED_LPM_V4 => maps.dropped_lpm_v4.count(|_, _| true)?,
            map_name::UNMASQUERADED_LPM_V4 => maps.unmasqueraded_lpm_v4.count(|_, _| true)?,
            map_name::FRONTENDS_V4 => maps.frontends_v4.count(|_, _| true)?,
            map_name::SERVICES => {
                maps.services.count(|_, entry| entry.flags & service_flags::PRESENT != 0)?
            }
            map_name::SLOTS => maps.slots.count(|_, _| true)?,
            map_name::BACKENDS_V4 => maps.backends_v4.count(|_, entry| entry.service != 0)?,
            map_name::SOURCES_LPM_V4 => maps.sources_lpm_v4.count(|_, _| true)?,
            map_name::AFFINITY => maps.affinity.count(|_, _| true)?,
            map_name::NAMESPACES => maps.namespaces.count(|_, _| true)?,
            map_name::SOCKETS_V4 => maps.sockets_v4.count(|_, _| true)?,
            map_name::NODES => maps.nodes.count(|_, entry| entry.family != 0)?,
            _ => return Ok(None),
        }))
    }

    /// The entries of a map by name, decoded and sorted by key. Array slots that are empty are left out.
    ///
    /// # Errors
    /// [`DatapathError::Unsupported`] for a name that is none, or of a map without entries; otherwise as
    /// [`Self::map_list`].
    pub fn map_dump(&self, name: &str) -> Result<Vec<MapRow>, DatapathError> {
        let maps = &self.maps;
        match name {
            map_name::CONFIG => rows(maps.config.dump()?, |key, config| {
                let value = json!({
                    "abi_version": config.abi_version,
                    "native": config.flags & node_flags::NATIVE != 0,
                    "legacy_host_routing": config.flags & node_flags::LEGACY_HOST_ROUTING != 0,
                    "masquerade": config.flags & node_flags::MASQUERADE != 0,
                    "host_ifindex": config.host_ifindex,
                    "net_ifindex": config.net_ifindex,
                    "vxlan_ifindex": config.vxlan_ifindex,
                    "underlay_ifindex": config.underlay_ifindex,
                    "gateway": Ipv4Addr::from(config.gateway_v4),
                    "underlay": Ipv4Addr::from(config.underlay_v4),
                    "pod_mtu_bytes": config.pod_mtu_bytes,
                    "underlay_mtu_bytes": config.underlay_mtu_bytes,
                    "tunnel_port": config.tunnel_port,
                    "masquerade_ports": [config.masquerade_port_min, config.masquerade_port_max],
                    "host_mac": Mac(config.host_mac).to_string(),
                });
                Some((json!(key), value))
            }),
            map_name::ENDPOINTS_BY_IFINDEX => {
                rows(maps.endpoints_by_ifindex.dump()?, |key, entry| Some((json!(key), endpoint(entry))))
            }
            map_name::ENDPOINTS_V4 => rows(maps.endpoints_v4.dump()?, |key, entry| {
                Some((json!(Ipv4Addr::from(*key)), endpoint(entry)))
            }),
            map_name::IPCACHE_V4 => rows(maps.ipcache_v4.dump()?, |key, entry| {
                Some((json!(Ipv4Addr::from(*key)), ipcache(entry)))
            }),
            map_name::IPCACHE_LPM_V4 => {
                let networks = networks(maps.ipcache_lpm_v4.dump()?);
                rows(networks, |network, entry| Some((json!(network), ipcache(entry))))
            }
            map_name::DROPPED_LPM_V4 => rows(networks(maps.dropped_lpm_v4.dump()?), |network, value| {
                Some((json!(network), json!(value)))
            }),
            map_name::UNMASQUERADED_LPM_V4 => {
                rows(networks(maps.unmasqueraded_lpm_v4.dump()?), |network, value| {
                    Some((json!(network), json!(value)))
                })
            }
            map_name::FRONTENDS_V4 => rows(maps.frontends_v4.dump()?, |key, entry| {
                let frontend = service::frontend(key)?;
                let kind = service::kind(entry.kind).map(FrontendKind::word);
                Some((json!(frontend.to_string()), json!({ "service": entry.service, "kind": kind })))
            }),
            map_name::SERVICES => rows(maps.services.dump()?, |key, entry| {
                let (table, slots) = entry.table();
                (entry.flags & service_flags::PRESENT != 0).then(|| {
                    let value = json!({
                        "table": table,
                        "slots": slots,
                        "members": entry.members,
                        "maglev": entry.flags & service_flags::MAGLEV != 0,
                        "dsr": entry.flags & service_flags::DSR != 0,
                        "sources": entry.flags & service_flags::SOURCES != 0,
                        "affinity_seconds": entry.affinity_seconds,
                    });
                    (json!(key), value)
                })
            }),
            map_name::SLOTS => rows(maps.slots.dump()?, |key, block| {
                Some((json!(format!("{} {}", key.table, key.block)), json!(block.slots.to_vec())))
            }),
            map_name::BACKENDS_V4 => rows(maps.backends_v4.dump()?, |key, row| {
                let BackendValue { service, address, port, weight, state } = service::backend(row);
                let value = json!({
                    "service": service.0,
                    "address": address,
                    "port": port,
                    "weight": weight,
                    "state": state.word(),
                });
                (row.service != 0).then(|| (json!(key), value))
            }),
            map_name::SOURCES_LPM_V4 => {
                let mut sources = maps.sources_lpm_v4.dump()?;
                sources.sort_unstable_by_key(|(key, _)| (key.address, key.prefix_len));
                let row = |(key, value): (LpmKey<Source<V4>>, u32)| {
                    let range = source_range::range(&key)?;
                    let key = json!(format!("{} {range}", key.address.service));
                    Some(MapRow { key, value: json!(value) })
                };
                Ok(sources.into_iter().filter_map(row).collect())
            }
            map_name::AFFINITY => rows(maps.affinity.dump()?, |key, entry| {
                let client = match u32::try_from(key.client) {
                    Ok(address) => json!(Ipv4Addr::from(address)),
                    Err(_) => json!(format!("{:#x}", key.client)),
                };
                let key = json!({ "client": client, "service": key.service });
                Some((key, json!({ "backend": entry.backend, "last_seen_ns": entry.last_seen_ns })))
            }),
            map_name::SERVICE_PORTS => {
                let ports = maps.service_ports.dump()?.into_iter().flat_map(|(word, bits)| {
                    (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| 64 * word + bit)
                });
                rows(ports.map(|port| (port, ())).collect(), |port, ()| {
                    let protocol = Protocol::ALL.get((port >> 16) as usize)?;
                    Some((json!(format!("{} {}", protocol.word(), port & 0xffff)), json!(1)))
                })
            }
            map_name::NAMESPACES => rows(maps.namespaces.dump()?, |cookie, entry| {
                let is_node = entry.kind == namespace_kind::NODE;
                let value = json!({
                    "endpoint": (!is_node).then_some(entry.endpoint),
                    "inode": entry.inode,
                    "address": (!is_node).then(|| Ipv4Addr::from(entry.address_v4)),
                });
                Some((json!(cookie), value))
            }),
            map_name::SOCKETS_V4 => rows(maps.sockets_v4.dump()?, |key, entry| {
                let place = |address, port_be| {
                    SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port_be))
                };
                let kind = if key.kind == socket_kind::BACKEND { "backend" } else { "frontend" };
                let other = if key.kind == socket_kind::BACKEND { "frontend" } else { "backend" };
                let value = json!({
                    other: place(entry.address, entry.port_be),
                    "protocol": entry.protocol,
                    "service": entry.service,
                    "number": entry.backend,
                    "namespace": entry.namespace,
                });
                Some((json!({ "socket": key.cookie, kind: place(key.address, key.port_be) }), value))
            }),
            map_name::NODES => rows(maps.nodes.dump()?, |key, node| {
                let underlay = Ipv6Addr::from(node.underlay).to_canonical();
                (node.family != 0)
                    .then(|| (json!(key), json!({ "underlay": underlay, "family": node.family })))
            }),
            map_name::NODE_BY_ADDRESS_V4 => rows(maps.node_by_address_v4.dump()?, |key, index| {
                Some((json!(Ipv4Addr::from(*key)), json!({ "node": index })))
            }),
            map_name::EPOCHS => {
                rows(maps.epochs.dump()?, |key, epoch| (*epoch != 0).then(|| (json!(key), json!(epoch))))
            }
            map_name::FLOWS_V4 => {
                let mut flows = self.flow_table()?.list(usize::MAX, &FlowFilter::default())?;
                flows.sort_unstable();
                Ok(flows.into_iter().map(|flow| MapRow { key: flow.key(), value: json!(flow) }).collect())
            }
            map_name::COUNTERS => {
                let counters = self.counters()?.into_iter();
                let used = counters.filter(|(_, count)| count.packets != 0);
                Ok(used
                    .map(|((kind, direction), count)| MapRow {
                        key: json!({ "reason": kind.key(), "direction": direction.key() }),
                        value: json!(count),
                    })
                    .collect())
            }
            _ => Err(DatapathError::Unsupported(format!(
                "{name} is no map that can be dumped; there are {}",
                object::MAPS.join(", ")
            ))),
        }
    }
}

fn rows<K: Ord, V>(
    mut entries: Vec<(K, V)>,
    decode: impl Fn(&K, &V) -> Option<(Value, Value)>,
) -> Result<Vec<MapRow>, DatapathError> {
    entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries
        .iter()
        .filter_map(|(key, value)| decode(key, value))
        .map(|(key, value)| MapRow { key, value })
        .collect())
}

/// The entries of a trie by prefix; what is no prefix is left out.
fn networks<V>(entries: Vec<(LpmKey<V4>, V)>) -> Vec<(Ipv4Network, V)> {
    let network = |(key, value): (LpmKey<V4>, V)| {
        let length = u8::try_from(key.prefix_len).ok()?;
        Some((Ipv4Network::new(key.address.into(), length).ok()?, value))
    };
    entries.into_iter().filter_map(network).collect()
}

pub(crate) fn endpoint(entry: &EndpointEntry) -> Value {
    json!({
        "ifindex": entry.ifindex,
        "endpoint": entry.id,
        "identity": entry.identity,
        "address": Ipv4Addr::from(entry.address_v4),
        "mac": Mac(entry.mac).to_string(),
        "host_mac": Mac(entry.host_mac).to_string(),
    })
}

pub(crate) fn ipcache(entry: &IpcacheEntry) -> Value {
    json!({ "identity": entry.identity, "node": entry.node })
}
