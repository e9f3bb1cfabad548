//! Health probes: sends the probes that the node requests, and their results to the node. Decides nothing.

mod echo;
mod http;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use kvstore_schema::service::Probe as Question;
use node_core::{Event, Probe, ProbeId, ProbeTarget};
use tokio::{
    net::TcpStream,
    sync::{
        Semaphore,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
    task::JoinSet,
};
use tracing::warn;

use super::{Core, Stopping};
use crate::metrics::Metrics;

/// Concurrent probes, each with a socket. Further ones wait, and their time-out begins when they start.
const MAX_AT_ONCE: usize = 256;
/// The most results in one event.
const MAX_TOLD: usize = 256;

/// Starts probes. They end with the agent.
pub struct Prober {
    // Unbounded, since the loop must never wait. The node has one probe in flight for each check.
    orders: UnboundedSender<Vec<Probe>>,
}

type Answer = (ProbeId, Result<(), String>);

impl Prober {
    /// The prober and its task: spawn the task and abort it to stop.
    pub fn new(
        core: Core,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = Result<(), Stopping>> + Send + 'static) {
        let (orders, inbox) = mpsc::unbounded_channel();
        (Self { orders }, run(inbox, core, metrics))
    }

    /// Starts these probes and returns at once; each result goes to the node.
    pub fn ask(&self, probes: Vec<Probe>) {
        // The task ends with the agent.
        drop(self.orders.send(probes));
    }
}

async fn run(
    mut orders: UnboundedReceiver<Vec<Probe>>,
    core: Core,
    metrics: Arc<Metrics>,
) -> Result<(), Stopping> {
    let turns = Arc::new(Semaphore::new(MAX_AT_ONCE));
    let (answers, mut answered) = mpsc::unbounded_channel::<Answer>();
    // Aborts its tasks when this function ends.
    let mut asking = JoinSet::new();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(probes) = order else { return Ok(()) };
                for probe in probes {
                    let (turns, answers, metrics) = (turns.clone(), answers.clone(), metrics.clone());
                    asking.spawn(async move {
                        let _turn = turns.acquire().await.expect("the semaphore is never closed");
                        let answer = ask(&probe.target, probe.timeout).await;
                        metrics.count_probe(&probe.target, answer.is_ok());
                        drop(answers.send((probe.id, answer)));
                    });
                }
            }
            // Never 0, since this function holds a sender.
            _ = answered.recv_many(&mut batch, MAX_TOLD) => {
                core.event(Event::Probed(std::mem::take(&mut batch))).await?;
            }
            Some(_) = asking.join_next(), if !asking.is_empty() => {}
        }
    }
}

/// One probe. The error says what went wrong, in a few words.
async fn ask(target: &ProbeTarget, timeout: Duration) -> Result<(), String> {
    let answer = async {
        match target {
            ProbeTarget::Backend { at, probe: Question::Tcp } => connect(*at).await.map(drop),
            ProbeTarget::Backend { at, probe: Question::Http { path, host } } => {
                http::get(connect(*at).await?, path, host.as_deref()).await
            }
            ProbeTarget::Node(address) => {
                if let Err(error) = echo::until_reply(*address).await {
                    // A probe that cannot be sent says nothing about the node.
                    warn!(%address, %error, "node cannot be probed; it counts as alive");
                }
                Ok(())
            }
        }
    };
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| Err(format!("no answer in {timeout:?}")))
}

/// A connection that leaves no TIME_WAIT entry when it is dropped: thousands of checks an hour would fill the node's table.
async fn connect(at: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(at).await.map_err(|error| words(&error))?;
    // If it fails, the connection is closed with FIN.
    drop(stream.set_zero_linger());
    Ok(stream)
}

/// An error in a few words, the same for the same kind of error.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to it".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
