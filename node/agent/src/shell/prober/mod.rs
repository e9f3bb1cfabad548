//! Asks backends and nodes what the node wants to know, and tells it their answers. Decides nothing.

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

/// Probes at once: each is a socket. Others wait for their turn, and their time runs from then on.
const MAX_AT_ONCE: usize = 256;
/// Answers told to the node at once, at the most.
const MAX_TOLD: usize = 256;

/// Where probes are ordered. They end with the agent.
pub struct Prober {
    // Unbounded, as the loop must never wait: the node has one probe out for each check that it makes.
    orders: UnboundedSender<Vec<Probe>>,
}

type Answer = (ProbeId, Result<(), String>);

impl Prober {
    /// A way to the prober, and what asks: spawn it and abort it to stop.
    pub fn new(
        core: Core,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = Result<(), Stopping>> + Send + 'static) {
        let (orders, inbox) = mpsc::unbounded_channel();
        (Self { orders }, run(inbox, core, metrics))
    }

    /// Has these asked; the node is told of each answer. Returns at once.
    pub fn ask(&self, probes: Vec<Probe>) {
        // A prober that is gone is an agent that stops.
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
    // Aborts what it holds when this ends.
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
            // Never 0: one of its senders is here.
            _ = answered.recv_many(&mut batch, MAX_TOLD) => {
                core.event(Event::Probed(std::mem::take(&mut batch))).await?;
            }
            Some(_) = asking.join_next(), if !asking.is_empty() => {}
        }
    }
}

/// The error: what went wrong, in a few words.
async fn ask(target: &ProbeTarget, timeout: Duration) -> Result<(), String> {
    let answer = async {
        match target {
            ProbeTarget::Backend { at, probe: Question::Tcp } => connect(*at).await.map(drop),
            ProbeTarget::Backend { at, probe: Question::Http { path, host } } => {
                http::get(connect(*at).await?, path, host.as_deref()).await
            }
            ProbeTarget::Node(address) => {
                if let Err(error) = echo::until_answered(*address).await {
                    // Who cannot ask calls nobody dead.
                    warn!(%address, %error, "silent node cannot be asked: it counts as alive");
                }
                Ok(())
            }
        }
    };
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| Err(format!("no answer in {timeout:?}")))
}

/// A connection that leaves nothing behind when it is dropped: thousands of checks an hour would fill the node's table of
/// closed connections.
async fn connect(at: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(at).await.map_err(|error| words(&error))?;
    // Without it the connection is closed the long way, that is all.
    drop(stream.set_zero_linger());
    Ok(stream)
}

/// The same few words for the same thing, whatever the system calls it.
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
