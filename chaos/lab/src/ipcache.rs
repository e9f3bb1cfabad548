//! A node's ipcache in the kernel, read through its agent: not the agent's desired state.

use std::{collections::HashMap, net::IpAddr};

use anyhow::{Context, Result};
use node_api::{Client, LimitQuery};

use crate::ask;

/// The map of exact addresses.
const IPCACHE: &str = "WARREN_IPC_V4";

/// All exact addresses with their identities.
///
/// # Errors
/// When the agent does not answer, or a row is malformed.
pub fn kernel_ipcache(api: &Client) -> Result<HashMap<IpAddr, u32>> {
    let dump = ask(api.map_dump(IPCACHE, &LimitQuery::default()))?;
    dump.rows
        .iter()
        .map(|row| {
            let address = row.get("key").and_then(|value| value.as_str()?.parse().ok());
            let identity = row.get("identity").and_then(|value| value.as_u64()?.try_into().ok());
            address.zip(identity).with_context(|| format!("a row of {IPCACHE} is no entry: {row:?}"))
        })
        .collect()
}
