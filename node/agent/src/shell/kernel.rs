//! The kernel, behind a thread of its own: map work blocks, and devices are made in the node's network
//! namespace, which belongs to a thread.

use std::{sync::Arc, thread, time::Instant};

use datapath_linux::{Datapath, DatapathError, EndedFlow, Events, HookUser, LinuxConfig, ProgramInfo};
use datapath_plan::Plan;
use node_core::Event;
use tokio::{
    runtime::{Builder, Handle},
    sync::{mpsc, oneshot},
    time::{Duration, MissedTickBehavior, interval},
};
use tracing::{debug, error, warn};

use super::Core;
use crate::metrics::Metrics;

/// How often flows that went silent are collected. The shortest life of an entry is some ten seconds.
const COLLECT_EVERY: Duration = Duration::from_secs(5);
/// Batches of ended flows that wait for the event pump; more are dropped and counted.
const ENDED_QUEUE: usize = 16;

/// What the thread is to do.
pub enum Order {
    /// Carry out a plan; the node is told.
    Apply(Plan),
    /// Read everything; the node is told.
    Observe,
    /// Say which programs work where.
    Programs(oneshot::Sender<Result<Vec<ProgramInfo>, DatapathError>>),
    /// Say what is at the hooks of our devices and of these.
    HookUsers(Vec<String>, oneshot::Sender<Result<Vec<HookUser>, DatapathError>>),
    /// Read something for the API.
    Query(Box<dyn FnOnce(&mut Datapath) + Send>),
}

/// The thread has ended: the agent stops, or it met a bug of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel thread has ended")]
pub struct KernelGone;

/// The way to the kernel. Cheap to clone. When the last clone is gone, the thread ends; programs, maps and
/// devices stay at work.
#[derive(Clone)]
pub struct Kernel {
    // Unbounded, as the loop must never wait: the node has one plan or observation out at a time, and the
    // HTTP side bounds its requests.
    orders: mpsc::UnboundedSender<Order>,
}

/// What [`Kernel::start`] gives.
pub struct Started {
    /// The way in.
    pub kernel: Kernel,
    /// Reports of the programs.
    pub events: Events,
    /// Flows that went silent.
    pub ended: mpsc::Receiver<Vec<EndedFlow>>,
    /// Answers when the thread has ended.
    pub gone: oneshot::Receiver<()>,
}

impl Kernel {
    /// Opens the datapath in a new thread, which keeps the caller's network namespace.
    ///
    /// # Errors
    /// Whatever the kernel lacks; the text says what to do.
    pub async fn start(
        config: LinuxConfig,
        core: Core,
        metrics: Arc<Metrics>,
    ) -> Result<Started, DatapathError> {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (opened, opening) = oneshot::channel();
        let (ended_sender, ended) = mpsc::channel(ENDED_QUEUE);
        let (gone_sender, gone) = oneshot::channel::<()>();
        let agent = Handle::current();
        thread::Builder::new()
            .name("warren-kernel".to_owned())
            .spawn(move || {
                // Dropped with the thread, however it ends.
                let _gone = gone_sender;
                let runtime = match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        drop(opened.send(Err(DatapathError::NotReady(format!("no runtime: {error}")))));
                        return;
                    }
                };
                runtime.block_on(async {
                    match open(config, &agent).await {
                        Err(error) => drop(opened.send(Err(error))),
                        Ok((datapath, events)) => {
                            drop(opened.send(Ok(events)));
                            Worker { datapath, core, metrics, ended: ended_sender }.run(inbox).await;
                        }
                    }
                });
            })
            .map_err(|error| DatapathError::NotReady(format!("no thread: {error}")))?;
        let events = opening.await.map_err(|_| DatapathError::NotReady(KernelGone.to_string()))??;
        Ok(Started { kernel: Self { orders }, events, ended, gone })
    }

    /// Gives an order; what becomes of it is told to the node. After the thread's end orders are dropped: the
    /// agent is about to end too.
    pub fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            debug!("{KernelGone}: order dropped");
        }
    }

    /// Reads something, after what was ordered before.
    ///
    /// # Errors
    /// [`KernelGone`]
    pub async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Datapath) -> T + Send + 'static,
    ) -> Result<T, KernelGone> {
        let (answer, answered) = oneshot::channel();
        let read = Box::new(move |datapath: &mut Datapath| {
            // Whoever asked may have gone; then nobody misses the answer.
            drop(answer.send(read(datapath)));
        });
        self.orders.send(Order::Query(read)).map_err(|_| KernelGone)?;
        answered.await.map_err(|_| KernelGone)
    }

    /// Which programs work where.
    ///
    /// # Errors
    /// [`DatapathError::NotReady`] when the thread has ended; otherwise as [`Datapath::programs`].
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>, DatapathError> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Programs(answer));
        answered.await.map_err(|_| DatapathError::NotReady(KernelGone.to_string()))?
    }

    /// What is at the hooks of our devices and of those named, ours and others'.
    ///
    /// # Errors
    /// [`DatapathError::NotReady`] when the thread has ended; otherwise as [`Datapath::hook_users`].
    pub async fn hook_users(&self, devices: Vec<String>) -> Result<Vec<HookUser>, DatapathError> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::HookUsers(devices, answer));
        answered.await.map_err(|_| DatapathError::NotReady(KernelGone.to_string()))?
    }
}

async fn open(config: LinuxConfig, agent: &Handle) -> Result<(Datapath, Events), DatapathError> {
    let mut datapath = Datapath::open(config).await?;
    // The ring is read by the agent's own runtime, so that a long plan does not hold it up.
    let guard = agent.enter();
    let events = datapath.events()?;
    drop(guard);
    let events = events.expect("nobody took the ring of a datapath opened just now");
    Ok((datapath, events))
}

struct Worker {
    datapath: Datapath,
    core: Core,
    metrics: Arc<Metrics>,
    ended: mpsc::Sender<Vec<EndedFlow>>,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        let mut collect = interval(COLLECT_EVERY);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                biased;
                order = inbox.recv() => match order {
                    None => return,
                    Some(order) => self.carry_out(order).await,
                },
                _ = collect.tick() => {
                    self.collect();
                    None
                }
            };
            if let Some(event) = event
                && self.core.event(event).await.is_err()
            {
                return;
            }
        }
    }

    async fn carry_out(&mut self, order: Order) -> Option<Event> {
        let begin = Instant::now();
        match order {
            Order::Apply(plan) => {
                let (generation, steps) = (plan.generation, plan.ops.len());
                let outcome = self.datapath.apply(plan).await;
                self.metrics.apply_seconds.observe(begin.elapsed().as_secs_f64());
                self.metrics.apply_ops.inc_by(steps as u64);
                for failure in &outcome.failures {
                    self.metrics.count_apply_failure(failure.error.kind);
                    warn!(op = ?failure.op, error = %failure.error, "step failed");
                }
                debug!(generation = generation.0, steps, took = ?begin.elapsed(), "plan applied");
                Some(Event::Applied(outcome))
            }
            Order::Observe => {
                let observed = self.datapath.observe().await;
                self.metrics.observe_seconds.observe(begin.elapsed().as_secs_f64());
                if let Err(error) = &observed {
                    error!(error = error.chain(), "kernel cannot be read");
                }
                Some(Event::Observed(observed.map_err(|error| error.chain())))
            }
            Order::Programs(answer) => {
                drop(answer.send(self.datapath.programs().await));
                None
            }
            Order::HookUsers(devices, answer) => {
                drop(answer.send(self.datapath.hook_users(&devices).await));
                None
            }
            Order::Query(read) => {
                read(&mut self.datapath);
                None
            }
        }
    }

    fn collect(&mut self) {
        match self.datapath.gc_flows() {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => {
                self.metrics.flows_collected.inc_by(ended.len() as u64);
                if let Err(full) = self.ended.try_send(ended) {
                    self.metrics.count_lost_events("queue", full.into_inner().len() as u64);
                }
            }
            Err(error) => warn!(%error, "flow table cannot be collected"),
        }
    }
}
