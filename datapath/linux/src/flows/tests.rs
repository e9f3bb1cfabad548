//! Collecting on maps of the kernel, without programs.

use std::{collections::BTreeSet, time::Instant};

use aya_obj::generated::bpf_map_type;
use datapath_packet::{TCP, UDP, flag};

use super::*;
use crate::table::tests::new_table;

const HOUR_NS: u64 = 3_600 * 1_000_000_000;
const NOW_NS: u64 = 100 * HOUR_NS;

/// `None` where the kernel lets us make no maps.
fn flow_table(entries: u32) -> Option<FlowTable> {
    let kind = bpf_map_type::BPF_MAP_TYPE_HASH;
    Some(FlowTable { flows: new_table(kind, entries, 0)?, epochs: new_table(kind, 1, 0)? })
}

fn key(number: u32, protocol: u8) -> FlowKey<V4> {
    let source = (10 << 24 | number).to_be_bytes();
    FlowKey {
        src: source,
        dst: [192, 0, 2, 1],
        src_port_be: [1, 2],
        dst_port_be: [0, 80],
        protocol,
        pad: [0; 3],
    }
}

/// Both entries of a flow, whose last packet was seen so long ago in its original direction.
fn flow_of(key: FlowKey<V4>, silent_ns: u64, tcp_flags: u8) -> [(FlowKey<V4>, FlowEntry); 2] {
    let original = FlowEntry {
        packets: 3,
        bytes: 300,
        last_seen_ns: NOW_NS - silent_ns,
        tcp_flags,
        ..FlowEntry::default()
    };
    let reply = FlowEntry {
        packets: 2,
        bytes: 200,
        flags: flow_flags::REPLY,
        last_seen_ns: NOW_NS - HOUR_NS,
        ..original
    };
    [(key, original), (key.reverse(), reply)]
}

fn collect(table: &FlowTable) -> Vec<EndedFlow> {
    let mut all = Vec::new();
    let batch = |ended: Vec<EndedFlow>| {
        assert!(ended.len() <= BATCH_ENTRIES as usize, "{} at once", ended.len());
        all.extend(ended);
    };
    table.collect_at(NOW_NS, batch).expect("collect");
    all
}

#[test]
fn flow_collection_reports_each_silent_flow_once_and_keeps_the_others() {
    const FLOWS: u32 = 12_000;
    let Some(table) = flow_table(4 * FLOWS) else { return };
    let silent = (0..FLOWS).flat_map(|number| flow_of(key(number, UDP), HOUR_NS, 0));
    let live = (FLOWS..2 * FLOWS).flat_map(|number| flow_of(key(number, UDP), 1_000_000_000, 0));
    let entries: Vec<_> = silent.chain(live).collect();
    assert!(table.flows.put_all(&entries).is_empty());

    let ended = collect(&table);
    let sources: BTreeSet<IpAddr> = ended.iter().map(|ended| ended.flow.source).collect();
    assert_eq!((ended.len(), sources.len()), (FLOWS as usize, FLOWS as usize));
    assert!(
        ended.iter().all(|ended| (ended.flow.packets, ended.reply_packets, ended.reply_bytes) == (3, 2, 200))
    );
    assert_eq!(table.stats().expect("stats").entries, u64::from(2 * FLOWS));
    assert_eq!(collect(&table), []);
}

#[test]
fn flow_collection_judges_both_directions_together() {
    let Some(table) = flow_table(100) else { return };
    let check = |flow: &[(FlowKey<V4>, FlowEntry)], ended: usize, left: u64| {
        assert!(table.flows.put_all(flow).is_empty());
        assert_eq!((collect(&table).len(), table.stats().expect("stats").entries), (ended, left), "{flow:?}");
        table.flows.delete_all(&flow.iter().map(|(key, _)| *key).collect::<Vec<_>>());
    };
    let established = flag::SYN | flag::ACK;
    let flow = |silent_ns, tcp_flags| flow_of(key(1, TCP), silent_ns, tcp_flags);
    check(&flow(HOUR_NS, established), 0, 2);
    check(&flow(7 * HOUR_NS, established), 0, 2);
    check(&flow(HOUR_NS, established | flag::RST), 1, 0);

    // The reply direction alone shows that the connection is closed.
    let [original, mut reply] = flow(HOUR_NS, established);
    reply.1.tcp_flags |= flag::RST;
    check(&[original, reply], 1, 0);
    // The programs have reported the end.
    let [mut original, reply] = flow(HOUR_NS, established | flag::RST);
    original.1.flags |= flow_flags::ENDED;
    check(&[original, reply], 0, 0);
    // The other direction was evicted.
    let [original, reply] = flow(HOUR_NS, established | flag::RST);
    check(&[original], 1, 0);
    check(&[reply], 0, 0);
}

/// Not a test: `cargo test -p datapath-linux --lib flow_collection_of_300000 -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn flow_collection_of_300000_entries() {
    let Some(table) = flow_table(400_000) else { return };
    let idle = (0..150_000).flat_map(|number| flow_of(key(number, TCP), HOUR_NS, flag::SYN | flag::ACK));
    let active = |number| flow_of(key(number, TCP), 0, flag::SYN | flag::ACK);
    for (what, entries) in
        [("idle", idle.collect::<Vec<_>>()), ("active", (0..150_000).flat_map(active).collect())]
    {
        assert!(table.flows.put_all(&entries).is_empty());
        for _ in 0..3 {
            let begin = Instant::now();
            assert_eq!(collect(&table), []);
            println!("{what}: {:?}", begin.elapsed());
        }
    }
}
