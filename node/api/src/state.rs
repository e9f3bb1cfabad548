//! The desired state of the kernel, its difference from the observed state, and the lines of the event stream.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use node_observe::FlowEvent;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to `GET /v1/state`: the desired state, every table in the order in which plans make them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct State {
    /// The tables, also those without rows.
    pub tables: Vec<StateTable>,
}

/// A table of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateTable {
    /// The table's name, as in plans, differences and metrics.
    pub name: String,
    /// Its rows, sorted by key.
    pub rows: Vec<StateRow>,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateRow {
    /// The key in words; empty where a table has one row at the most.
    pub key: String,
    /// The row in words, as in plans and differences.
    pub text: String,
    /// The row's fields.
    pub fields: BTreeMap<String, serde_json::Value>,
}

impl State {
    /// The rows of a table.
    pub fn rows(&self, table: &str) -> &[StateRow] {
        self.tables.iter().find(|it| it.name == table).map_or(&[], |it| &it.rows)
    }

    /// The base; `None` until the node has a pod CIDR, and where its row cannot be understood.
    pub fn base(&self) -> Option<BaseRow> {
        let [row] = self.rows("base") else { return None };
        let fields = row.fields.clone().into_iter().collect();
        serde_json::from_value(serde_json::Value::Object(fields)).ok()
    }
}

/// The fields of the row of the table `base`: the devices and settings that everything else depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRow {
    /// The node's own address in the pod network.
    pub gateway: IpAddr,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU of endpoints.
    pub mtu_bytes: u32,
    /// How packets reach other nodes: `tunnel` or `native`.
    pub mode: String,
    /// How packets reach local endpoints: `bpf` or `legacy`.
    pub host_routing: String,
    /// Masquerade; `null` if endpoints reach the world with their own addresses.
    pub masquerade: Option<MasqueradeRow>,
}

/// The settings of masquerade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqueradeRow {
    /// The first port of the range.
    pub first_port: u16,
    /// The last port of the range.
    pub last_port: u16,
    /// Destinations that are not masqueraded.
    pub exclude: Vec<IpNetwork>,
}

/// The answer to `POST /v1/state/diff`: the differences between desired and observed state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateDiff {
    /// One line for each difference, sorted.
    pub differences: Vec<String>,
    /// Whether the differences were repaired.
    pub repaired: bool,
}

/// A line of `GET /v1/observe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all lines are events; boxing them would cost an allocation for each"
)]
pub enum ObserveLine {
    /// An event.
    Event(FlowEvent),
    /// The reader was too slow: events are missing here.
    Lagged {
        /// The number of missing events.
        events: u64,
    },
}
