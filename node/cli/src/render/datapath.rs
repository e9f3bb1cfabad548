//! Maps, state, flows, counters, events.

use std::net::SocketAddr;

use node_api::{
    CounterRow, FlowEvent, FlowRow, Listing, MapDump, MapSummary, State, StateDiff, StateRow, StateTable,
};
use node_observe::{EventKind, Party};

use super::{Mark, Style, bytes, count, duration, table::table, time};

pub fn maps(listing: &Listing<MapSummary>, _: Style) -> String {
    let rows = listing
        .items
        .iter()
        .map(|map| {
            let (entries, fill) = match map.entries {
                Some(entries) => {
                    let share = entries as f64 * 100.0 / f64::from(map.max_entries.max(1));
                    (entries.to_string(), format!("{share:.1}%"))
                }
                None => ("-".to_owned(), "-".to_owned()),
            };
            let sizes = format!("{}/{}", map.key_bytes, map.value_bytes);
            [
                map.name.clone(),
                map.id.to_string(),
                map.kind.clone(),
                sizes,
                entries,
                map.max_entries.to_string(),
                fill,
            ]
        })
        .collect();
    table(&["MAP", "ID", "TYPE", "KEY/VALUE", "ENTRIES", "MAX", "FILL"], rows, listing.total, "maps")
}

/// One line per entry, as `field=value`: maps have different fields, and lines can be searched.
pub fn map_dump(dump: &MapDump, _: Style) -> String {
    let mut text = String::new();
    for row in &dump.rows {
        let fields: Vec<String> = row
            .iter()
            .map(|(name, value)| match value {
                serde_json::Value::String(value) => format!("{name}={value}"),
                other => format!("{name}={other}"),
            })
            .collect();
        text += &fields.join("  ");
        text.push('\n');
    }
    if dump.rows.len() < dump.total {
        text += &format!("{} of {} entries shown\n", dump.rows.len(), dump.total);
    } else if dump.total == 0 {
        text += "no entries\n";
    }
    text
}

/// One line a row, as in plans and differences.
pub fn state(state: &State, _: Style) -> String {
    let mut text = String::new();
    for StateTable { name, rows } in &state.tables {
        for StateRow { key, text: row, .. } in rows {
            let blank = if key.is_empty() { "" } else { " " };
            text += &format!("{name}{blank}{key}: {row}\n");
        }
    }
    if state.rows("base").is_empty() {
        text += "no base yet: this node has no pod CIDR\n";
    }
    text
}

pub fn state_diff(diff: &StateDiff, _: Style) -> String {
    if diff.differences.is_empty() {
        return "desired and observed state are equal\n".to_owned();
    }
    let mut text: String = diff.differences.iter().map(|line| format!("{line}\n")).collect();
    let differences = count(diff.differences.len() as u64, "difference");
    text += &if diff.repaired {
        format!("{differences}, repaired\n")
    } else {
        format!("{differences}; `warren state diff --repair` repairs now, otherwise the next audit does\n")
    };
    text
}

fn party(party: &Party) -> String {
    let name = match (&party.endpoint, party.identity.reserved_name()) {
        (Some(endpoint), _) => endpoint.to_string(),
        (None, Some(name)) => name.to_owned(),
        (None, None) if party.labels.is_empty() => format!("identity {}", party.identity),
        (None, None) => party.labels.to_string(),
    };
    match (party.address, party.port) {
        (None, _) => format!("? ({name})"),
        (Some(address), 0) => format!("{address} ({name})"),
        (Some(address), port) => format!("{} ({name})", SocketAddr::new(address, port)),
    }
}

pub fn flows(listing: &Listing<FlowRow>, _: Style) -> String {
    let rows = listing
        .items
        .iter()
        .map(|flow| {
            [
                party(&flow.source),
                party(&flow.destination),
                flow.protocol.to_string(),
                flow.action.clone(),
                format!("{}/{}", flow.packets, flow.reply_packets),
                format!("{}/{}", bytes(flow.bytes), bytes(flow.reply_bytes)),
                duration(flow.age_ms),
                duration(flow.idle_ms),
                flow.tcp_flags.clone(),
            ]
        })
        .collect();
    let heading = ["SOURCE", "DESTINATION", "PROTO", "TO", "PACKETS", "BYTES", "AGE", "IDLE", "TCP"];
    table(&heading, rows, listing.total, "flows")
}

pub fn drops(listing: &Listing<CounterRow>, _: Style) -> String {
    let rows = listing
        .items
        .iter()
        .map(|row| {
            [
                row.reason.clone(),
                row.direction.clone(),
                row.packets.to_string(),
                bytes(row.bytes),
                row.meaning.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["REASON", "DIRECTION", "PACKETS", "BYTES", "MEANING"], rows, listing.total, "counters")
}

/// One line per event.
pub fn event(event: &FlowEvent, style: Style) -> String {
    let (mark, what) = match event.kind {
        EventKind::FlowNew => (Mark::Ok, format!("new {}", event.action.as_deref().unwrap_or("flow"))),
        EventKind::FlowEnd => (Mark::Ok, "end".to_owned()),
        EventKind::Drop => (Mark::Fail, event.drop_reason.clone().unwrap_or_default()),
    };
    let word = if mark == Mark::Fail { "DROP" } else { "    " };
    let word =
        if mark == Mark::Fail && style.colour { format!("\x1b[31m{word}\x1b[0m") } else { word.to_owned() };
    let mut text = format!(
        "{} {word} {what:<20} {:<7} {:<4} {} -> {}",
        style.dim(&time(event.unix_us)),
        event.direction,
        event.protocol.to_string(),
        party(&event.source),
        party(&event.destination)
    );
    if !event.tcp_flags.is_empty() {
        text += &format!(" {}", event.tcp_flags);
    }
    if event.kind == EventKind::FlowEnd {
        text += &format!(" {}, {}", count(event.packets, "packet"), bytes(event.bytes));
    }
    if let Some(source) = event.tunnel_source {
        text += &format!(" from tunnel {source}");
    }
    text
}
