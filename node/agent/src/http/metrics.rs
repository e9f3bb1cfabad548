//! `/metrics` and `/healthz`.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use node_core::StatusView;
use serde::Serialize;

use super::{App, error::Failure, status::is_ready};
use crate::metrics::{GossipSnapshot, Snapshot};

/// A node that does not answer within this time is stuck: decisions take microseconds, and only a listing of the whole
/// ipcache takes nearly a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

pub fn router(app: App) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/healthz", get(health)).with_state(app)
}

async fn metrics(State(app): State<App>) -> Result<Response, Failure> {
    let status = app.core.read(node_core::Node::status).await?;
    let (counters, maps) =
        app.kernel_read(|datapath| Ok((datapath.counters()?, datapath.map_list()?))).await?;
    let gossip = app.gossip.as_ref().map(|gossip| {
        let peers = gossip.peers();
        let alive = peers.iter().filter(|peer| peer.alive).count();
        GossipSnapshot { stats: gossip.stats(), alive, dead: peers.len() - alive }
    });
    let heard = status.store.heard_at.unwrap_or(status.started_at);
    let snapshot = Snapshot {
        silence_seconds: app.clock.now().wall.saturating_sub(heard).as_secs_f64(),
        lease_held: app.lease.state().held,
        status,
        counters,
        maps,
        gossip,
    };
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], app.metrics.render(&snapshot)).into_response())
}

/// The body of `/healthz`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Health {
    /// `ok`, `degraded` (works with a problem that a restart would not mend) or `failed`.
    status: &'static str,
    reasons: Vec<String>,
}

async fn health(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let asked = tokio::time::timeout(ANSWER_WITHIN, app.core.read(node_core::Node::status)).await;
    let health = match asked {
        Ok(Ok(view)) => judge(&view),
        Ok(Err(stopping)) => Health { status: "failed", reasons: vec![stopping.to_string()] },
        Err(_) => Health {
            status: "failed",
            reasons: vec![format!("the node has not answered for {ANSWER_WITHIN:?}")],
        },
    };
    let status = if health.status == "failed" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(health))
}

/// An unreachable etcd only degrades a node: a restart would not mend it.
fn judge(view: &StatusView) -> Health {
    if let Some(reason) = &view.halted {
        return Health { status: "failed", reasons: vec![reason.clone()] };
    }
    let mut reasons = Vec::new();
    if !view.store.connected {
        let why = view.store.lost.as_deref().unwrap_or("not reached yet");
        reasons.push(format!("store: {why}"));
    }
    if !is_ready(view) {
        reasons.push("no pod CIDR in the kernel yet".to_owned());
    }
    reasons.extend(view.plan.failing.iter().map(|(key, reason)| format!("{key}: {reason}")));
    reasons.extend(view.plan.full.iter().map(|table| format!("{table} is full")));
    reasons.extend(view.warnings.iter().cloned());
    Health { status: if reasons.is_empty() { "ok" } else { "degraded" }, reasons }
}
