//! Counters and timers of the agent, and the page that shows them. Names and help texts are in `node_observe::metric`.

use std::sync::atomic::AtomicU64;

use datapath_linux::{CounterKind, Counters, MapInfo};
use datapath_plan::OpErrorKind;
use node_core::{ProbeTarget, StatusView};
use node_gossip::GossipStats;
use node_observe::metric::{self, Metric};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Labels of one series.
type Series = Vec<(&'static str, String)>;
type Floats = Gauge<f64, AtomicU64>;

/// Histogram buckets in seconds: a decision takes microseconds, a full read of the kernel a second.
const SHORT: [f64; 12] = [5e-6, 2e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1, 1.0, 10.0];

/// Metrics that are counted as events happen. One per agent, shared by all tasks.
#[derive(Debug)]
pub struct Metrics {
    pub handle_seconds: Histogram,
    pub apply_seconds: Histogram,
    pub observe_seconds: Histogram,
    pub kv_seconds: Histogram,
    pub apply_ops: Counter,
    pub kv_resyncs: Counter,
    pub lease_lost: Counter,
    pub flows_collected: Counter,
    kv_requests: Family<Series, Counter>,
    apply_failures: Family<Series, Counter>,
    events_lost: Family<Series, Counter>,
    probes: Family<Series, Counter>,
}

/// Values that are read for a scrape.
#[derive(Debug)]
pub struct Snapshot {
    pub status: StatusView,
    pub counters: Counters,
    pub maps: Vec<MapInfo>,
    pub gossip: Option<GossipSnapshot>,
    pub lease_held: bool,
    pub silence_seconds: f64,
}

/// The state of gossip for a scrape.
#[derive(Debug)]
pub struct GossipSnapshot {
    pub stats: GossipStats,
    pub alive: usize,
    pub dead: usize,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let histogram = || Histogram::new(SHORT);
        Self {
            handle_seconds: histogram(),
            apply_seconds: histogram(),
            observe_seconds: histogram(),
            kv_seconds: histogram(),
            apply_ops: Counter::default(),
            kv_resyncs: Counter::default(),
            lease_lost: Counter::default(),
            flows_collected: Counter::default(),
            kv_requests: Family::default(),
            apply_failures: Family::default(),
            events_lost: Family::default(),
            probes: Family::default(),
        }
    }

    /// Counts a store request by its outcome.
    pub fn count_kv(&self, outcome: &'static str) {
        self.kv_requests.get_or_create(&vec![("outcome", outcome.to_owned())]).inc();
    }

    /// Counts a probe of a backend or node.
    pub fn count_probe(&self, target: &ProbeTarget, good: bool) {
        let of = match target {
            ProbeTarget::Backend { .. } => "backend",
            ProbeTarget::Node(_) => "node",
        };
        let answer = if good { "good" } else { "bad" };
        self.probes.get_or_create(&vec![("of", of.to_owned()), ("answer", answer.to_owned())]).inc();
    }

    /// Counts a failed step of a plan.
    pub fn count_apply_failure(&self, kind: OpErrorKind) {
        let word = match kind {
            OpErrorKind::NamespaceGone => "namespace-gone",
            OpErrorKind::Capacity => "capacity",
            OpErrorKind::Conflict => "conflict",
            OpErrorKind::Transient => "transient",
        };
        self.apply_failures.get_or_create(&vec![("kind", word.to_owned())]).inc();
    }

    /// Counts flow events lost at `reader` or `decode`. The kernel counts those that it drops.
    pub fn count_lost_events(&self, place: &'static str, events: u64) {
        if events > 0 {
            self.events_lost.get_or_create(&vec![("where", place.to_owned())]).inc_by(events);
        }
    }

    /// The page, in the OpenMetrics text format.
    pub fn render(&self, snapshot: &Snapshot) -> String {
        let mut page = Page(Registry::default());
        page.add(&metric::HANDLE_SECONDS, self.handle_seconds.clone());
        page.add(&metric::APPLY_SECONDS, self.apply_seconds.clone());
        page.add(&metric::OBSERVE_SECONDS, self.observe_seconds.clone());
        page.add(&metric::KV_SECONDS, self.kv_seconds.clone());
        page.add(&metric::APPLY_OPS, self.apply_ops.clone());
        page.add(&metric::APPLY_FAILURES, self.apply_failures.clone());
        page.add(&metric::KV_REQUESTS, self.kv_requests.clone());
        page.add(&metric::KV_RESYNCS, self.kv_resyncs.clone());
        page.add(&metric::LEASE_LOST, self.lease_lost.clone());
        page.add(&metric::FLOWS_COLLECTED, self.flows_collected.clone());
        page.add(&metric::HEALTH_PROBES, self.probes.clone());
        page.status(&snapshot.status);
        page.kernel(self, snapshot);
        page.gauge(&metric::LEASE_HELD, f64::from(u8::from(snapshot.lease_held)));
        page.gauge(&metric::KV_SILENCE, snapshot.silence_seconds);
        page.gossip(snapshot.gossip.as_ref());
        let mut text = String::new();
        encode(&mut text, &page.0).expect("writing to a String does not fail");
        text
    }
}

struct Page(Registry);

impl Page {
    fn add(&mut self, metric: &Metric, value: impl prometheus_client::registry::Metric) {
        self.0.register(metric.name, metric.help, value);
    }

    fn gauge(&mut self, metric: &Metric, value: f64) {
        let gauge = Floats::default();
        gauge.set(value);
        self.add(metric, gauge);
    }

    fn gauges(&mut self, metric: &Metric, values: impl IntoIterator<Item = (Series, f64)>) {
        let family = Family::<Series, Floats>::default();
        for (series, value) in values {
            family.get_or_create(&series).set(value);
        }
        self.add(metric, family);
    }

    fn counters(&mut self, metric: &Metric, values: impl IntoIterator<Item = (Series, u64)>) {
        let family = Family::<Series, Counter>::default();
        for (series, value) in values {
            family.get_or_create(&series).inc_by(value);
        }
        self.add(metric, family);
    }

    fn status(&mut self, status: &StatusView) {
        self.gauges(&metric::BUILD, [(vec![("version", status.agent_version.clone())], 1.0)]);
        self.gauge(&metric::START, status.started_at.as_secs_f64());
        self.gauge(&metric::ENDPOINTS, status.counts.endpoints as f64);
        self.gauge(&metric::NODES, status.counts.nodes as f64);
        self.gauge(&metric::IDENTITIES, status.counts.identities as f64);
        self.gauge(&metric::IPCACHE, status.counts.ipcache as f64);
        self.gauge(&metric::KV_CONNECTED, f64::from(u8::from(status.store.connected)));
        self.gauge(&metric::KV_REVISION, status.store.revision as f64);
        self.gauge(&metric::KV_REJECTED, status.store.rejected as f64);
        let repaired = status.counters.audit_repaired.iter();
        self.counters(
            &metric::AUDIT_REPAIRED,
            repaired.map(|(table, count)| (vec![("table", table.clone())], *count)),
        );
    }

    fn kernel(&mut self, live: &Metrics, snapshot: &Snapshot) {
        let mut dropped = Vec::new();
        let mut forwarded = Vec::new();
        let mut early = Vec::new();
        let lost = live.events_lost.clone();
        let in_kernel = lost.get_or_create(&vec![("where", "kernel".to_owned())]).clone();
        let mut kernel_lost = 0;
        for ((kind, direction), count) in &snapshot.counters {
            let direction = ("direction", direction.key().to_owned());
            match kind {
                CounterKind::Forwarded => forwarded.push((vec![direction], *count)),
                CounterKind::Dropped(reason) => {
                    dropped.push((vec![("reason", reason.key().to_owned()), direction], *count));
                }
                CounterKind::ForwardedByXdp => early.push((vec![direction], *count)),
                CounterKind::EventsLost => kernel_lost += count.packets,
            }
        }
        // The kernel's count outlives the agent, so the series is set to it.
        in_kernel.inc_by(kernel_lost.saturating_sub(in_kernel.get()));
        self.counters(
            &metric::DROPPED,
            dropped.iter().map(|(series, count)| (series.clone(), count.packets)),
        );
        self.counters(
            &metric::DROPPED_BYTES,
            dropped.iter().map(|(series, count)| (series.clone(), count.bytes)),
        );
        self.counters(&metric::XDP, early.iter().map(|(series, count)| (series.clone(), count.packets)));
        self.counters(
            &metric::FORWARDED,
            forwarded.iter().map(|(series, count)| (series.clone(), count.packets)),
        );
        self.counters(
            &metric::FORWARDED_BYTES,
            forwarded.iter().map(|(series, count)| (series.clone(), count.bytes)),
        );
        self.add(&metric::EVENTS_LOST, lost);
        let by_map = |value: fn(&MapInfo) -> Option<f64>| {
            let maps = snapshot.maps.iter();
            maps.filter_map(move |map| Some((vec![("map", map.name.clone())], value(map)?)))
        };
        let entries = |map: &MapInfo| map.entries.map(|entries| entries as f64);
        self.gauges(&metric::MAP_ENTRIES, by_map(entries));
        self.gauges(&metric::MAP_CAPACITY, by_map(|map| map.entries.map(|_| f64::from(map.max_entries))));
    }

    fn gossip(&mut self, gossip: Option<&GossipSnapshot>) {
        let Some(GossipSnapshot { stats, alive, dead }) = gossip else { return };
        let state = |word: &str| vec![("state", word.to_owned())];
        self.gauges(&metric::GOSSIP_PEERS, [(state("alive"), *alive as f64), (state("dead"), *dead as f64)]);
        let outcome = |word: &str| vec![("outcome", word.to_owned())];
        let refused = stats.refused.iter().map(|(reason, count)| (outcome(reason.name()), *count));
        let others = [
            (outcome("sent"), stats.datagrams_out),
            (outcome("send-failed"), stats.send_failed),
            (outcome("accepted"), stats.opened),
        ];
        self.counters(&metric::GOSSIP_DATAGRAMS, refused.chain(others));
        self.counters(&metric::GOSSIP_RESTARTS, [(Vec::new(), stats.restarts)]);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use datapath_abi::{Direction, DropReason};
    use datapath_linux::Count;
    use node_gossip::Refusal;
    use node_observe::metric::MetricKind;

    use super::*;

    fn status() -> StatusView {
        let mut counters = node_core::Counters::default();
        counters.audit_repaired.insert("ipcache".to_owned(), 2);
        StatusView {
            node: "n".parse().unwrap(),
            fleet: "f".parse().unwrap(),
            fleet_id: None,
            agent_version: "0.0.0".to_owned(),
            incarnation: 1,
            started_at: std::time::Duration::from_secs(1),
            halted: None,
            warnings: Vec::new(),
            store: Default::default(),
            underlay: Vec::new(),
            pod_mtu_bytes: 0,
            gateway: None,
            cidrs: Vec::new(),
            plan: Default::default(),
            audit: None,
            last_error: None,
            counts: Default::default(),
            counters,
        }
    }

    fn snapshot() -> Snapshot {
        let dropped = CounterKind::Dropped(DropReason::SourceSpoofed);
        let counts = [
            ((dropped, Direction::Egress), Count { packets: 3, bytes: 300 }),
            ((CounterKind::Forwarded, Direction::Ingress), Count { packets: 9, bytes: 900 }),
            ((CounterKind::ForwardedByXdp, Direction::Ingress), Count { packets: 2, bytes: 200 }),
            ((CounterKind::EventsLost, Direction::Egress), Count { packets: 4, bytes: 0 }),
        ];
        let map = MapInfo {
            name: "WARREN_IPC_V4".to_owned(),
            id: 1,
            kind: "hash".to_owned(),
            key_bytes: 4,
            value_bytes: 8,
            max_entries: 100,
            entries: Some(7),
        };
        let stats = GossipStats { refused: vec![(Refusal::BadTag, 5)], ..GossipStats::default() };
        Snapshot {
            status: status(),
            counters: BTreeMap::from(counts),
            maps: vec![map],
            gossip: Some(GossipSnapshot { stats, alive: 2, dead: 1 }),
            lease_held: true,
            silence_seconds: 1.5,
        }
    }

    #[test]
    fn metrics_page_has_every_metric_of_the_schema_with_its_kind() {
        let metrics = Metrics::new();
        metrics.count_kv("answered");
        metrics.count_apply_failure(OpErrorKind::Conflict);
        metrics.count_probe(&ProbeTarget::Node(Ipv4Addr::LOCALHOST.into()), true);
        let page = metrics.render(&snapshot());
        for metric in metric::ALL {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            assert!(
                page.contains(&format!("# TYPE {} {kind}\n", metric.name)),
                "{} is missing:\n{page}",
                metric.name
            );
            let lines = page.lines().filter(|line| line.starts_with(metric.name));
            for label in metric.labels {
                let has = lines.clone().any(|line| line.contains(&format!("{label}=\"")));
                assert!(has, "{} has no label {label}:\n{page}", metric.name);
            }
        }
    }

    #[test]
    fn metrics_page_shows_kernel_counts_unchanged_when_read_again() {
        let metrics = Metrics::new();
        metrics.render(&snapshot());
        let page = metrics.render(&snapshot());
        for line in [
            "warren_dropped_packets_total{reason=\"source-spoofed\",direction=\"egress\"} 3",
            "warren_forwarded_bytes_total{direction=\"ingress\"} 900",
            "warren_xdp_packets_total{direction=\"ingress\"} 2",
            "warren_events_lost_total{where=\"kernel\"} 4",
            "warren_map_entries{map=\"WARREN_IPC_V4\"} 7.0",
            "warren_gossip_datagrams_total{outcome=\"bad-tag\"} 5",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing:\n{page}");
        }
    }
}
