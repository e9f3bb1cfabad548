//! The flow table: both directions of a flow as one row.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use datapath_linux::{Flow, FlowFilter};
use identity::Identity;
use node_api::{EventFilter, FlowQuery, FlowRow, Listing};
use node_observe::{Party, Protocol, tcp_flags};

use super::{
    App,
    error::{Failure, Params},
};
use crate::shell::name_party;

/// Flows that get their names in one read of the node.
const BATCH: usize = 256;

/// The flow table.
#[utoipa::path(get, path = "/v1/flows", params(FlowQuery), responses((status = 200, body = Listing<FlowRow>)))]
pub async fn flows(
    State(app): State<App>,
    Params(query): Params<FlowQuery>,
) -> Result<Json<Listing<FlowRow>>, Failure> {
    let limit = query.limit;
    let coarse =
        FlowFilter { address: None, protocol: query.protocol.map(|protocol| protocol.0), port: query.port };
    let filter = EventFilter::from(query);
    let flows = app.flow_read(move |table| table.list(usize::MAX, &coarse)).await?;
    let wanted = |row: &FlowRow| filter.matches_flow(&row.source, &row.destination, row.protocol);
    let mut rows = rows(flows);
    // Names are expensive: only rows that are shown get them, unless the filter needs names.
    if filter.needs_names() {
        rows = named(&app, rows).await?;
        rows.retain(wanted);
        return Ok(Json(Listing::new(rows, limit)));
    }
    rows.retain(wanted);
    let Listing { items, total } = Listing::new(rows, limit);
    Ok(Json(Listing { items: named(&app, items).await?, total }))
}

async fn named(app: &App, rows: Vec<FlowRow>) -> Result<Vec<FlowRow>, Failure> {
    let mut done = Vec::with_capacity(rows.len());
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let mut batch: Vec<FlowRow> = rows.by_ref().take(BATCH).collect();
        let batch = app
            .core
            .read(move |node| {
                for row in &mut batch {
                    name_party(node, &mut row.source);
                    name_party(node, &mut row.destination);
                }
                batch
            })
            .await?;
        done.extend(batch);
    }
    Ok(done)
}

/// Joins both entries of each flow, in its original direction; sorted.
fn rows(flows: Vec<Flow>) -> Vec<FlowRow> {
    let (replies, firsts): (Vec<Flow>, Vec<Flow>) = flows.into_iter().partition(|flow| flow.reply);
    let mut replies: BTreeMap<_, Flow> = replies
        .into_iter()
        .map(|flow| {
            // The original direction is the reverse of the reply as it arrives.
            let (source, source_port) =
                flow.new_source.map_or((flow.source, flow.source_port), |new| (new.ip(), new.port()));
            let (destination, destination_port) = flow
                .new_destination
                .map_or((flow.destination, flow.destination_port), |new| (new.ip(), new.port()));
            ((destination, destination_port, source, source_port, flow.protocol), flow)
        })
        .collect();
    let mut rows: Vec<FlowRow> = firsts
        .into_iter()
        .map(|flow| {
            let key = (flow.source, flow.source_port, flow.destination, flow.destination_port, flow.protocol);
            row(&flow, replies.remove(&key).as_ref())
        })
        .collect();
    // A reply whose original direction was evicted is still a flow.
    rows.extend(replies.values().map(|reply| row(reply, None)));
    rows.sort_by_key(|row| {
        (row.source.address, row.source.port, row.destination.address, row.destination.port, row.protocol)
    });
    rows
}

fn row(flow: &Flow, reply: Option<&Flow>) -> FlowRow {
    let party = |address, port, number| {
        Party::bare(Some(address), port, Identity::new(number).unwrap_or(Identity::UNKNOWN))
    };
    FlowRow {
        source: party(flow.source, flow.source_port, flow.source_identity),
        destination: party(flow.destination, flow.destination_port, flow.destination_identity),
        protocol: Protocol(flow.protocol),
        action: flow.action.to_owned(),
        reply_action: reply.map(|reply| reply.action.to_owned()),
        packets: flow.packets,
        bytes: flow.bytes,
        reply_packets: reply.map_or(0, |reply| reply.packets),
        reply_bytes: reply.map_or(0, |reply| reply.bytes),
        tcp_flags: tcp_flags(flow.protocol, flow.tcp_flags | reply.map_or(0, |reply| reply.tcp_flags)),
        age_ms: flow.age_ms.max(reply.map_or(0, |reply| reply.age_ms)),
        idle_ms: reply.map_or(flow.idle_ms, |reply| reply.idle_ms.min(flow.idle_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, destination: &str, reply: bool, packets: u64) -> Flow {
        let (source, source_port) = source.split_once(':').unwrap();
        let (destination, destination_port) = destination.split_once(':').unwrap();
        Flow {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: source_port.parse().unwrap(),
            destination_port: destination_port.parse().unwrap(),
            protocol: 6,
            source_identity: 300,
            destination_identity: 301,
            from: "endpoint",
            from_index: 1,
            action: "local",
            to_index: 2,
            new_source: None,
            new_destination: None,
            backend: None,
            reply,
            packets,
            bytes: packets * 100,
            tcp_flags: 2,
            idle_ms: 10 * packets,
            age_ms: 100,
            current: true,
        }
    }

    #[test]
    fn flow_rows_join_both_directions_and_keep_a_lone_reply() {
        let rows = rows(vec![
            flow("10.0.0.2:80", "10.0.0.1:4000", true, 7),
            flow("10.0.0.1:4000", "10.0.0.2:80", false, 5),
            flow("10.0.0.9:80", "10.0.0.1:4001", true, 1),
        ]);
        let shown: Vec<_> =
            rows.iter().map(|row| (row.source.port, row.packets, row.reply_packets, row.idle_ms)).collect();
        assert_eq!(shown, [(4_000, 5, 7, 50), (80, 1, 0, 10)]);
    }

    #[test]
    fn flow_row_joins_a_masqueraded_flow_and_its_reply() {
        let first = Flow {
            new_source: Some("192.0.2.1:61000".parse().unwrap()),
            ..flow("10.0.0.1:4000", "198.51.100.9:80", false, 5)
        };
        let answer = Flow {
            new_destination: Some("10.0.0.1:4000".parse().unwrap()),
            ..flow("198.51.100.9:80", "192.0.2.1:61000", true, 7)
        };
        let rows = rows(vec![answer, first]);
        assert_eq!((rows.len(), rows[0].packets, rows[0].reply_packets), (1, 5, 7));
    }
}
