//! The names of all metrics: the only place where a metric is named. The agent registers what is here and
//! nothing else; the reference page is made from it.

/// How a metric's value moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only up.
    Counter,
    /// Up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The name as registered; a counter's gets `_total` appended in the exposition.
    pub name: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// What it means, unit included.
    pub help: &'static str,
    /// Its labels.
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

        /// All of them.
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
    BEFORE_STACK = Counter "warren_before_stack_packets" ["direction"] "Of the forwarded packets those that the program before the stack carried (datapath.xdp)";
    EVENTS_LOST = Counter "warren_events_lost" ["where"] "Flow events lost: ring full, queue full, or not decodable";
    ENDPOINTS = Gauge "warren_endpoints" [] "Endpoints of this node";
    NODES = Gauge "warren_nodes" [] "Nodes of the fleet that this one knows";
    IDENTITIES = Gauge "warren_identities" [] "Identities of the fleet that this node knows";
    IPCACHE = Gauge "warren_ipcache_entries" [] "Entries wanted in the ipcache";
    MAP_ENTRIES = Gauge "warren_map_entries" ["map"] "Entries of a map in the kernel";
    MAP_CAPACITY = Gauge "warren_map_capacity" ["map"] "Entries that a map can hold";
    HANDLE_SECONDS = Histogram "warren_handle_seconds" [] "Time to decide on one event, in seconds";
    APPLY_SECONDS = Histogram "warren_apply_seconds" [] "Time to carry out one plan, in seconds";
    APPLY_OPS = Counter "warren_apply_steps" [] "Steps of plans carried out";
    APPLY_FAILURES = Counter "warren_apply_failures" ["kind"] "Steps of plans that failed";
    OBSERVE_SECONDS = Histogram "warren_observe_seconds" [] "Time to read the kernel whole, in seconds";
    AUDIT_REPAIRED = Counter "warren_audit_repaired" ["table"] "Differences between kernel and intent that audits found";
    KV_REQUESTS = Counter "warren_kv_requests" ["outcome"] "Requests to the store";
    KV_SECONDS = Histogram "warren_kv_seconds" [] "Time of a request to the store, in seconds";
    KV_CONNECTED = Gauge "warren_kv_connected" [] "1 while the watch on the store runs";
    KV_REVISION = Gauge "warren_kv_revision" [] "Revision up to which everything is known";
    KV_SILENCE = Gauge "warren_kv_watch_age_seconds" [] "Seconds since the watch last said anything";
    KV_RESYNCS = Counter "warren_kv_resyncs" [] "Times that the whole prefix was listed";
    KV_REJECTED = Gauge "warren_kv_rejected_records" [] "Records of the store that are not believed";
    LEASE_HELD = Gauge "warren_lease_held" [] "1 while this node's sign of life is on a lease";
    LEASE_LOST = Counter "warren_lease_lost" [] "Leases lost and made again";
    GOSSIP_PEERS = Gauge "warren_gossip_peers" ["state"] "Nodes seen by gossip";
    GOSSIP_DATAGRAMS = Counter "warren_gossip_datagrams" ["outcome"] "Datagrams of gossip: sent, accepted, or refused and why";
    GOSSIP_RESTARTS = Counter "warren_gossip_restarts" [] "Restarts of the gossip task";
    HEALTH_PROBES = Counter "warren_health_probes" ["of", "answer"] "Questions to backends and to silent nodes, by their answer";
    FLOWS_COLLECTED = Counter "warren_flows_collected" [] "Flow entries deleted because they went silent or closed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
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
