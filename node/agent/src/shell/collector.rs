//! Collecting flows that ended in silence, beside the thread that applies plans: a pass over a large table takes a few
//! hundred milliseconds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use datapath_linux::{EndedFlow, FlowTable};
use tokio::{sync::mpsc, time::sleep};
use tracing::warn;

use super::Stopping;
use crate::metrics::Metrics;

/// The shortest pause between two passes. The shortest lifetime of a flow is 10 s.
const PAUSE: Duration = Duration::from_secs(5);
/// A pause is at least so many times as long as the pass before it: a table of half a million idle flows takes no more
/// than a twentieth of one CPU.
const PAUSE_TO_PASS: u32 = 20;
/// Batches of ended flows that wait for the event pump. The collector waits when there are more.
const QUEUE: usize = 4;

/// The collector's output, and its task: spawn it and abort it to stop.
pub fn collector(
    flows: Arc<FlowTable>,
    metrics: Arc<Metrics>,
) -> (mpsc::Receiver<Vec<EndedFlow>>, impl Future<Output = Result<(), Stopping>> + Send + 'static) {
    let (sender, ended) = mpsc::channel(QUEUE);
    (ended, run(flows, metrics, sender))
}

async fn run(
    flows: Arc<FlowTable>,
    metrics: Arc<Metrics>,
    ended: mpsc::Sender<Vec<EndedFlow>>,
) -> Result<(), Stopping> {
    let mut pause = PAUSE;
    loop {
        sleep(pause).await;
        let (flows, metrics, ended) = (flows.clone(), metrics.clone(), ended.clone());
        let pass = move || {
            let begin = Instant::now();
            let result = flows.collect(|batch| {
                metrics.flows_collected.inc_by(batch.len() as u64);
                // The event pump ends with the agent.
                drop(ended.blocking_send(batch));
            });
            if let Err(error) = result {
                warn!(error = error.chain(), "flow table cannot be collected");
            }
            begin.elapsed()
        };
        let took = tokio::task::spawn_blocking(pass).await.map_err(|_| Stopping)?;
        pause = PAUSE.max(took * PAUSE_TO_PASS);
    }
}
