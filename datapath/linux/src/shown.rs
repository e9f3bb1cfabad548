//! How keys and values of the maps are shown: one implementation for each type.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use datapath_abi::{
    AffinityEntry, AffinityKey, BackendEntry, EndpointEntry, FrontendEntry, FrontendKey, IpcacheEntry,
    LpmKey, NamespaceEntry, NodeConfig, NodeEntry, ServiceEntry, SlotBlock, SlotsKey, SocketEntry, SocketKey,
    Source, V4, namespace_kind, node_flags, service_flags, socket_kind,
};
use datapath_plan::{BackendValue, FrontendKind, Mac};
use serde_json::{Value, json};

use crate::{
    descriptor::{backend, frontend, network, source_range},
    dump::{ShownKey, ShownValue},
};

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
        Some(json!(network(self)?))
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
