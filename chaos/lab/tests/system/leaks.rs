//! Endpoint churn leaves nothing behind: in maps, etcd, devices, files, and the agent's memory.
//!
//! `WARREN_SCALE_ENDPOINTS=10000` (`make test-scale`) creates as many; every run creates a few hundred.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use anyhow::{Result, ensure};
use chaos_lab::{ask, namespace, process, wait};
use identity::EndpointName;
use node_api::{AttachmentKind, EndpointAdd};

use crate::support::{SOON, TestLab, use_scale_programs};

/// Endpoints that exist at the same time.
const ALIVE: usize = 100;
/// Endpoints of an ordinary run.
const ENDPOINTS: usize = 300;
/// Concurrent callers. The agent applies one plan at a time and collects further changes meanwhile.
const CALLERS: usize = 4;
/// How much the agent's memory may grow after the warm-up: allocators keep freed memory.
const GROWTH_KB: u64 = 8 * 1024;
/// Endpoints of each batch whose namespace is deleted before the agent is told, as workloads do.
const DISAPPEAR: usize = 5;

fn endpoint(lab: &TestLab, node: &str, index: usize) -> (EndpointName, EndpointAdd) {
    let slot = index % ALIVE;
    let name = EndpointName::new(&format!("leak-{index}")).unwrap();
    let request = EndpointAdd {
        name: name.clone(),
        labels: format!("app=leak,part=p{}", slot % 4).parse().unwrap(),
        attachment: AttachmentKind::Netns {
            path: namespace::path(&workload(lab, node, slot)),
            interface: "eth0".to_owned(),
        },
        address: None,
    };
    (name, request)
}

fn workload(lab: &TestLab, node: &str, slot: usize) -> String {
    lab.name().endpoint_namespace(node, &format!("w{slot}"))
}

/// Does something to each endpoint of a range, from several threads.
fn for_each(range: std::ops::Range<usize>, work: impl Fn(usize) -> Result<()> + Sync) {
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (work, range) = (&work, range.clone());
            scope.spawn(move || range.skip(caller).step_by(CALLERS).for_each(|index| work(index).unwrap()));
        }
    });
}

/// Adds and deletes a batch of endpoints.
fn batch(lab: &TestLab, node: &str, range: std::ops::Range<usize>) {
    for slot in 0..range.len() {
        let inside = workload(lab, node, slot);
        if !namespace::exists(&inside) {
            namespace::create(&inside).unwrap();
        }
    }
    for_each(range.clone(), |index| ask(lab.api(node).endpoint_add(&endpoint(lab, node, index).1)).map(drop));
    for slot in 0..DISAPPEAR.min(range.len()) {
        namespace::delete(&workload(lab, node, slot)).unwrap();
    }
    for_each(range, |index| {
        let deleted = ask(lab.api(node).endpoint_delete(&endpoint(lab, node, index).0))?;
        ensure!(deleted.existed, "endpoint {index} was not there");
        Ok(())
    });
}

/// Everything that could accumulate, by name.
fn counts(lab: &TestLab, node: &str) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for map in ask(lab.api(node).maps())?.items {
        // Flows time out on their own schedule.
        if let Some(entries) = map.entries.filter(|_| !map.name.contains("FLOWS")) {
            counts.insert(map.name, entries);
        }
    }
    let inside = lab.name().machine_namespace(node);
    let lines = |text: String| text.lines().count() as u64;
    counts.insert("devices".to_owned(), lines(process::run(&inside, "ip", &["-o", "link"])?));
    counts.insert(
        "routes".to_owned(),
        lines(process::run(&inside, "ip", &["-o", "route", "show", "table", "all"])?),
    );
    counts.insert("neighbours".to_owned(), lines(process::run(&inside, "ip", &["-o", "neighbour"])?));
    let etcd = lab.name().machine_namespace("e1");
    let keys =
        process::run(&etcd, "env", &["ETCDCTL_API=3", "etcdctl", "get", "--prefix", "/", "--keys-only"])?;
    // The store's mark is written some time after the first record.
    let keys = keys.lines().filter(|line| !line.is_empty() && !line.ends_with("/mark"));
    counts.insert("etcd keys".to_owned(), keys.count() as u64);
    counts.insert("pins".to_owned(), files_below(&lab.pin_path(node)));
    counts.insert("files of the agent".to_owned(), files_below(&lab.name().folder().join(node)));
    let pid = agent(lab, node)?;
    counts.insert("descriptors".to_owned(), fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64);
    // The runtime starts and ends threads for file operations on demand: small differences are ignored.
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64;
    counts.insert("threads, in sixteens".to_owned(), threads / 16);
    Ok(counts)
}

fn files_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

fn agent(lab: &TestLab, node: &str) -> Result<i32> {
    let processes = lab.processes(node)?;
    ensure!(processes.len() == 1, "processes on {node}: {processes:?}");
    Ok(processes[0])
}

/// Resident memory, kB.
fn resident_kb(lab: &TestLab, node: &str) -> u64 {
    let pid = agent(lab, node).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says it");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn endpoint_churn_leaves_nothing() {
    let wanted =
        std::env::var("WARREN_SCALE_ENDPOINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(ENDPOINTS);
    // Addresses in cooldown count as used: with the default cooldown, blocks would be claimed for them.
    let flags = ["--fleet-address-cooldown".to_owned(), "0s".to_owned()];
    let Some(lab) = TestLab::up_with("leaks", 2, 1, |spec| {
        spec.agent_flags = flags.into();
        use_scale_programs(spec);
    }) else {
        return;
    };
    // These endpoints keep the identities in use, so that only endpoints are counted.
    for part in 0..4 {
        lab.endpoint("n1", &format!("keeper-{part}"), &format!("app=leak,part=p{part}"));
    }
    // The first tenth is the warm-up: one more block, buffers at their final size, the allocator's arenas.
    let warm = (wanted / 10).max(ALIVE);
    let mut from = 0;
    let mut run_until = |end: usize| {
        while from < end {
            let to = (from + ALIVE).min(end);
            batch(&lab, "n1", from..to);
            from = to;
        }
    };
    run_until(warm);
    let settled = |node: &str| {
        let mut last = None;
        wait::until("both kernels and etcd without the endpoints", SOON, || {
            let status = ask(lab.api(node).status())?;
            ensure!(status.endpoints == if node == "n1" { 4 } else { 0 }, "{} endpoints", status.endpoints);
            let counts = counts(&lab, node)?;
            // Gateways, the underlay addresses of both nodes, and the four endpoints that keep identities.
            ensure!(counts["WARREN_IPC_V4"] == 8, "{counts:?}");
            // The counts are stable: no file is being written, and no connection is about to end.
            let before = last.replace(counts.clone());
            ensure!(before.as_ref() == Some(&counts), "{before:?} before, {counts:?} now");
            Ok(counts)
        })
        .unwrap()
    };
    let before: Vec<_> = ["n1", "n2"].map(settled).into();
    let resident_before: Vec<u64> = ["n1", "n2"].map(|node| resident_kb(&lab, node)).into();

    let start = Instant::now();
    run_until(warm + wanted);
    let took = start.elapsed();

    for (index, node) in ["n1", "n2"].into_iter().enumerate() {
        wait::until("everything as before", SOON, || {
            let after = settled(node);
            let differing: Vec<_> = after
                .iter()
                .filter(|(name, count)| before[index].get(*name) != Some(count))
                .map(|(name, count)| format!("{name}: {:?} before, {count} after", before[index].get(name)))
                .collect();
            ensure!(differing.is_empty(), "{node}: {differing:?}");
            Ok(())
        })
        .unwrap();
        let (resident, after) = (resident_before[index], resident_kb(&lab, node));
        println!("{node}: {resident} kB resident after {warm} endpoints, {after} kB after {wanted} more");
        assert!(after < resident + GROWTH_KB, "{node}: {resident} kB resident before, {after} kB after");
    }
    println!(
        "{wanted} endpoints came and went in {took:?}, {:?} each",
        took / u32::try_from(wanted).unwrap()
    );
    let (code, text, _) = lab.warren("n1", &["state", "diff"]);
    assert_eq!((code, text.as_str()), (0, "desired and observed state are equal\n"));
}
