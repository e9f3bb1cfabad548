//! The schema of all metrics. The agent registers exactly these; `docs/METRICS.md` is generated from it.

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Increases only.
    Counter,
    /// Increases and decreases.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The name. The exposition appends `_total` to that of a counter.
    pub name: &'static str,
    /// The kind.
    pub kind: MetricKind,
    /// The meaning, with the unit.
    pub help: &'static str,
    /// The labels.
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: Metric = Metric {
            name: $name,
            kind: MetricKind::$kind,
            help: $help,
            labels: &[$($label),*],
        };)+

        /// All metrics.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    BUILD = Gauge "warren_build_info" ["version"] "Always 1; the version is in the label";
    START = Gauge "warren_start_time_seconds" [] "When the agent started, in seconds since 1970";
    DROPPED = Counter "warren_dropped_packets" ["reason", "direction"] "Packets dropped by the programs";
    DROPPED_BYTES = Counter "warren_dropped_bytes" ["reason", "direction"] "Bytes of dropped packets";
    FORWARDED = Counter "warren_forwarded_packets" ["direction"] "Packets forwarded by the programs";
    FORWARDED_BYTES = Counter "warren_forwarded_bytes" ["direction"] "Bytes of forwarded packets";
    XDP = Counter "warren_xdp_packets" ["direction"] "Packets forwarded by the XDP program (datapath.xdp), which warren_forwarded_packets includes";
    EVENTS_LOST = Counter "warren_events_lost" ["where"] "Flow events lost: ring full, queue full, or undecodable";
    ENDPOINTS = Gauge "warren_endpoints" [] "Endpoints of this node";
    NODES = Gauge "warren_nodes" [] "Nodes of the fleet known to this node";
    IDENTITIES = Gauge "warren_identities" [] "Identities of the fleet known to this node";
    IPCACHE = Gauge "warren_ipcache_entries" [] "Desired entries of the ipcache";
    MAP_ENTRIES = Gauge "warren_map_entries" ["map"] "Entries of a map in the kernel";
    MAP_CAPACITY = Gauge "warren_map_capacity" ["map"] "Capacity of a map in entries";
    HANDLE_SECONDS = Histogram "warren_handle_seconds" [] "Time to decide on one event, in seconds";
    APPLY_SECONDS = Histogram "warren_apply_seconds" [] "Time to apply one plan, in seconds";
    APPLY_OPS = Counter "warren_apply_steps" [] "Steps of plans applied";
    APPLY_FAILURES = Counter "warren_apply_failures" ["kind"] "Steps of plans that failed";
    OBSERVE_SECONDS = Histogram "warren_observe_seconds" [] "Time to read the whole observed state, in seconds";
    AUDIT_REPAIRED = Counter "warren_audit_repaired" ["table"] "Differences between desired and observed state found by audits";
    KV_REQUESTS = Counter "warren_kv_requests" ["outcome"] "Requests to the store";
    KV_SECONDS = Histogram "warren_kv_seconds" [] "Time of a request to the store, in seconds";
    KV_CONNECTED = Gauge "warren_kv_connected" [] "1 while the watch on the store runs";
    KV_REVISION = Gauge "warren_kv_revision" [] "Revision up to which this node knows the store";
    KV_SILENCE = Gauge "warren_kv_watch_age_seconds" [] "Seconds since the last message of the watch";
    KV_RESYNCS = Counter "warren_kv_resyncs" [] "Number of listings of the whole prefix";
    KV_REJECTED = Gauge "warren_kv_rejected_records" [] "Records of the store that were rejected";
    LEASE_HELD = Gauge "warren_lease_held" [] "1 while this node's liveness key has a lease";
    LEASE_LOST = Counter "warren_lease_lost" [] "Leases lost and granted again";
    GOSSIP_PEERS = Gauge "warren_gossip_peers" ["state"] "Nodes known to gossip";
    GOSSIP_DATAGRAMS = Counter "warren_gossip_datagrams" ["outcome"] "Datagrams of gossip: sent, accepted, or rejected by reason";
    GOSSIP_RESTARTS = Counter "warren_gossip_restarts" [] "Restarts of the gossip task";
    HEALTH_PROBES = Counter "warren_health_probes" ["of", "answer"] "Health checks of backends and probes of silent nodes, by result";
    FLOWS_COLLECTED = Counter "warren_flows_collected" [] "Flow entries deleted because the flow was idle or closed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_follow_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(seen.insert(name), "{name} is declared twice");
            assert!(name.starts_with("warren_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(!name.ends_with("_total"), "{name}: the exposition appends it");
            assert!(metric.help.len() > 10 && !metric.help.ends_with('.'), "{name}");
            if metric.kind == MetricKind::Histogram {
                assert!(name.ends_with("_seconds") && metric.help.ends_with("in seconds"), "{name}");
            }
        }
    }
}
