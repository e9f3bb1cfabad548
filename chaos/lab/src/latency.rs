//! `warren-lab latency`: how long until a new endpoint answers, and until every other node knows it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use chaos_lab::{Lab, interrupt, kernel_ipcache, probe, wait};
use identity::Labels;
use node_api::Client;
use serde::Serialize;

/// How long one endpoint may take before the measurement gives up.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a watcher pauses between two reads: a tenth of the times of interest, and little load for the measured
/// agents.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Minimum, median, 99th percentile and maximum, in milliseconds.
#[derive(Debug, Serialize)]
struct Spread {
    what: &'static str,
    min_ms: f64,
    median_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Spread {
    fn of(what: &'static str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
        Self { what, min_ms: at(0.0), median_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

/// Reads one node's ipcache from its kernel repeatedly, and records when each address first appeared.
struct Watcher {
    node: String,
    seen: Arc<Mutex<HashMap<IpAddr, Instant>>>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Watcher {
    fn start(node: String, api: Client) -> Self {
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(LOOK_PAUSE);
                    let known = kernel_ipcache(&api)?;
                    let now = Instant::now();
                    let mut seen = seen.lock().expect("no holder of this lock panics");
                    for address in known.into_keys() {
                        seen.entry(address).or_insert(now);
                    }
                }
                Ok(())
            }
        });
        Self { node, seen, stop, thread }
    }

    fn first_seen(&self, address: IpAddr) -> Result<Instant> {
        wait::until(&format!("{address} in the ipcache of {}", self.node), LIMIT, || {
            let seen = self.seen.lock().expect("no holder of this lock panics");
            seen.get(&address).copied().ok_or_else(|| anyhow!("not there"))
        })
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watcher of {} panicked", self.node))?
    }
}

/// Adds endpoints on the first node one after another, measures the times, and deletes the endpoints again.
pub fn run(lab: &Lab, count: u32, json: bool) -> Result<String> {
    let _catch = interrupt::Catch::new()?;
    let watchers: Vec<Watcher> =
        lab.spec().node_names().skip(1).map(|node| Watcher::start(node.clone(), lab.api(&node))).collect();
    let labels = Labels::parse(["app=latency"])?;
    // The first endpoint of a label set waits for an identity; the others are measured.
    lab.add_endpoint("n1", "latency-warm", &labels)?;
    let (mut added, mut answered, mut known) = (Vec::new(), Vec::new(), Vec::new());
    let measured = (0..count).try_for_each(|number| {
        interrupt::check()?;
        let name = format!("latency-{number}");
        let start = Instant::now();
        let endpoint = lab.add_endpoint("n1", &name, &labels)?;
        added.push(start.elapsed().as_secs_f64() * 1e3);
        // The endpoint's own stack replies to the gateway: the ping comes from its node.
        probe::ping(&lab.name().machine_namespace("n1"), endpoint.address, 1)?;
        answered.push(start.elapsed().as_secs_f64() * 1e3);
        let last = watchers
            .iter()
            .map(|watcher| watcher.first_seen(endpoint.address))
            .collect::<Result<Vec<_>>>()?;
        known.extend(last.into_iter().max().map(|at| (at - start).as_secs_f64() * 1e3));
        Ok::<_, anyhow::Error>(())
    });
    let ended: Result<Vec<()>> = watchers.into_iter().map(Watcher::end).collect();
    for name in (0..count).map(|number| format!("latency-{number}")).chain(["latency-warm".to_owned()]) {
        lab.delete_endpoint("n1", &name).with_context(|| format!("clean up {name}"))?;
    }
    measured?;
    ended?;
    let mut spreads = vec![
        Spread::of("request to answer of the API", added),
        Spread::of("request to first ping answered", answered),
    ];
    if !known.is_empty() {
        spreads.push(Spread::of("request to the kernel's ipcache of every other node", known));
    }
    if json {
        return Ok(serde_json::to_string_pretty(&spreads)? + "\n");
    }
    let heading = format!("{count} endpoints, milliseconds");
    let mut text = format!("{heading:<52} {:>8} {:>8} {:>8} {:>8}\n", "min", "median", "p99", "max");
    for Spread { what, min_ms, median_ms, p99_ms, max_ms } in spreads {
        text += &format!("{what:<52} {min_ms:>8.1} {median_ms:>8.1} {p99_ms:>8.1} {max_ms:>8.1}\n");
    }
    Ok(text)
}
