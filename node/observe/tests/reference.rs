//! `docs/METRICS.md` is generated from the tables of this crate. `UPDATE_GOLDEN=1 cargo test -p node-observe` rewrites it.

use std::{env, fs, path::Path};

use datapath_abi::DropReason;
use node_observe::{
    advice,
    metric::{self, MetricKind},
};

fn page() -> String {
    let mut text = "# Metrics and drop reasons\n\n\
        Generated from `node/observe/src/metric.rs` and `reason.rs`; do not edit.\n\n\
        ## Metrics\n\n\
        The agent serves them at `/metrics` on `http.metrics_listen`, in the OpenMetrics format: the name of a counter ends in `_total` there.\n\n\
        | metric | kind | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for metric in metric::ALL {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        text += &format!("| `{}` | {kind} | {} | {} |\n", metric.name, labels.join(", "), metric.help);
    }
    text += "\n## Drop reasons\n\n\
        The label `reason` of `warren_dropped_packets`, and what `warren drops` and `warren observe` show.\n\n\
        | reason | meaning | remedy |\n|---|---|---|\n";
    for &reason in DropReason::ALL {
        let advice = advice(reason);
        text += &format!("| `{}` | {} | {} |\n", reason.key(), advice.meaning, advice.remedy);
    }
    text
}

#[test]
fn metrics_page_has_every_metric_and_drop_reason() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/METRICS.md");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, page()).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, page(), "docs/METRICS.md differs; UPDATE_GOLDEN=1 rewrites it");
}
