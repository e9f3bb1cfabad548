//! The kernel's state: maps, hooks, flows, counters.

use std::collections::BTreeMap;

use node_observe::{Party, Protocol};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A map in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapSummary {
    /// The map's name, as pinned.
    pub name: String,
    /// The kernel's id of the map, which a restart of the agent does not change.
    pub id: u32,
    /// The map's type: `hash`, `lpm-trie`, `array`, ...
    pub kind: String,
    /// The size of a key.
    pub key_bytes: u32,
    /// The size of a value.
    pub value_bytes: u32,
    /// The number of entries; missing for rings and arrays.
    pub entries: Option<u64>,
    /// The capacity.
    pub max_entries: u32,
}

/// The content of a map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MapDump {
    /// The map's name.
    pub name: String,
    /// The entries, sorted by key; each row has the fields of key and value.
    pub rows: Vec<BTreeMap<String, serde_json::Value>>,
    /// The total number of entries.
    pub total: usize,
}

/// A program or filter at a hook of one of Warren's devices or of the underlay device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookUser {
    /// The device.
    pub device: String,
    /// `ingress` or `egress`, as the device sees it.
    pub direction: String,
    /// The kind of the hook: `tcx`, or `tc` for a filter.
    pub hook: String,
    /// The program's name, truncated by the kernel; the filter's kind if the filter has no program.
    pub name: String,
    /// The kernel's id of the program; `null` for a filter without a program.
    pub program_id: Option<u32>,
    /// Whether the program is this agent's.
    pub ours: bool,
}

/// A flow, both directions together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowRow {
    /// The sender in the original direction.
    pub source: Party,
    /// The receiver in the original direction.
    pub destination: Party,
    /// IP protocol.
    pub protocol: Protocol,
    /// Where packets of the original direction go: `local`, `tunnel`, `host`, `stack`, `underlay`.
    pub action: String,
    /// Where packets of the reply direction go; `null` if the flow table has no entry for that direction.
    pub reply_action: Option<String>,
    /// Packets of the original direction.
    pub packets: u64,
    /// Bytes of the original direction.
    pub bytes: u64,
    /// Packets of the reply direction.
    pub reply_packets: u64,
    /// Bytes of the reply direction.
    pub reply_bytes: u64,
    /// TCP flags seen in both directions, as `SYN|ACK`.
    pub tcp_flags: String,
    /// Milliseconds since the flow began.
    pub age_ms: u64,
    /// Milliseconds since the flow's last packet.
    pub idle_ms: u64,
}

/// A packet counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CounterRow {
    /// `forwarded`, `events-lost`, or the key of a drop reason.
    pub reason: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// What the drop reason means; missing for `forwarded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// The remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
