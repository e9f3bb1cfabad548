//! Collecting flows while plans are applied.

use std::{
    mem::offset_of,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use datapath_abi::{FlowEntry, FlowKey, V4};
use datapath_plan::{Op, TableKey};

use crate::{
    open::flow_map,
    stage::{Namespace, Stage, base_ops, endpoint, endpoint_ops, must},
};

/// Entries of idle flows that are not over, which are the most expensive ones to collect.
const ENTRIES: u32 = 300_000;

fn now_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    Duration::from(time).as_nanos() as u64
}

#[test]
fn flow_collection_does_not_hold_up_plans() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, base_ops(1)).await;
        let mut flows = flow_map(&stage.pin_root.join("maps"));
        let mut entry = [0; size_of::<FlowEntry>()];
        let last_seen = offset_of!(FlowEntry, last_seen_ns);
        entry[last_seen..last_seen + 8].copy_from_slice(&(now_ns() - 30_000_000_000).to_ne_bytes());
        // ACK: established.
        entry[offset_of!(FlowEntry, tcp_flags)] = 0x10;
        for number in 0..ENTRIES {
            let mut key = [0; size_of::<FlowKey<V4>>()];
            key[..4].copy_from_slice(&number.to_be_bytes());
            key[offset_of!(FlowKey<V4>, protocol)] = 6;
            flows.insert(key, entry, 0).expect("write it");
        }

        let table = datapath.flow_table().expect("a handle");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let collector = thread::spawn(move || {
            let mut passes = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                table.collect(|ended| panic!("{} flows are not over", ended.len())).expect("collect");
                passes.push((begin, Instant::now()));
            }
            passes
        });
        let mut plans = Vec::new();
        for _ in 0..20 {
            let begin = Instant::now();
            let (id, value) = endpoint(1, 1, &workload.path());
            must(&mut datapath, endpoint_ops(id, &value)).await;
            plans.push((begin, Instant::now()));
            must(&mut datapath, vec![Op::Delete(TableKey::Endpoint(id))]).await;
        }
        stop.store(true, Ordering::Relaxed);
        let passes = collector.join().expect("no panic");
        let is_within_a_pass = |(begin, end): &&(Instant, Instant)| {
            passes.iter().any(|(first, last)| first < begin && end < last)
        };
        let during = plans.iter().filter(is_within_a_pass).count();
        println!("{} passes, {during} of {} plans within one", passes.len(), plans.len());
        assert!(during > 0, "every plan waited for the end of a pass");
    });
}
