//! What the kernel holds: maps, flows, counters.

use std::collections::BTreeMap;

use node_observe::{Party, Protocol};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A map in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapSummary {
    /// Its name, as pinned.
    pub name: String,
    /// The kernel's number for it: the same before and after a restart of the agent.
    pub id: u32,
    /// Its type: `hash`, `lpm-trie`, `array`, ...
    pub kind: String,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Entries in it; missing where counting makes no sense (rings, arrays).
    pub entries: Option<u64>,
    /// Entries that it can hold.
    pub max_entries: u32,
}

/// A map's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MapDump {
    /// The map.
    pub name: String,
    /// Its entries by key, sorted; each row has the key's fields and the value's.
    pub rows: Vec<BTreeMap<String, serde_json::Value>>,
    /// How many entries there are in all.
    pub total: usize,
}

/// Something at a hook of one of our devices or of the underlay's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookUser {
    /// The device.
    pub device: String,
    /// `ingress` or `egress`, as the device sees it.
    pub direction: String,
    /// How it is attached: `tcx` or `tc` (a filter).
    pub hook: String,
    /// The program's name, as short as the kernel keeps it; of a filter without a program its kind.
    pub name: String,
    /// The kernel's number of the program; `null` for a filter without one.
    pub program_id: Option<u32>,
    /// Whether it is a program of this agent.
    pub ours: bool,
}

/// One flow: both directions together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowRow {
    /// Who began.
    pub source: Party,
    /// Who was spoken to.
    pub destination: Party,
    /// IP protocol.
    pub protocol: Protocol,
    /// Where packets of the first direction go: `local`, `tunnel`, `host`, `stack`.
    pub action: String,
    /// Where answers go; missing when their entry is.
    pub reply_action: Option<String>,
    /// Packets from the source.
    pub packets: u64,
    /// Bytes from the source.
    pub bytes: u64,
    /// Packets of the answer.
    pub reply_packets: u64,
    /// Bytes of the answer.
    pub reply_bytes: u64,
    /// TCP flags seen in both directions, as `SYN|ACK`.
    pub tcp_flags: String,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
}

/// Packets of one reason and direction.
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
    /// What it means; missing for `forwarded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
