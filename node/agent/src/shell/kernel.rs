//! The kernel, behind a thread of its own: map work blocks, and devices are made in the node's network namespace, which
//! is a property of a thread.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use datapath_linux::{Datapath, DatapathError, Events, FlowTable, HookUser, LinuxConfig, ProgramInfo};
use datapath_plan::Plan;
use node_core::Event;
use tokio::{
    runtime::{Builder, Handle},
    sync::{mpsc, oneshot},
};
use tracing::{debug, error, warn};

use super::Core;
use crate::metrics::Metrics;

/// A thread that is at one request for longer is stuck: a plan that attaches a thousand endpoints takes some 20 s.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// A request to the thread.
pub enum Order {
    /// Carry out a plan, and send the outcome to the node.
    Apply(Plan),
    /// Read the whole kernel state, and send it to the node.
    Observe,
    /// List the programs and where they are attached.
    Programs(oneshot::Sender<Result<Vec<ProgramInfo>, DatapathError>>),
    /// List what is attached at the hooks of Warren's devices and of these.
    HookUsers(Vec<String>, oneshot::Sender<Result<Vec<HookUser>, DatapathError>>),
    /// Read something for the API.
    Query(Box<dyn FnOnce(&mut Datapath) + Send>),
}

/// The thread has ended, because the agent stops or because of a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel thread has ended")]
pub struct KernelGone;

/// The way to the kernel. Cheap to clone. When the last clone is gone, the thread ends; programs, maps and
/// devices stay at work.
#[derive(Clone)]
pub struct Kernel {
    // Unbounded, since the loop must never wait. The node has one plan or observation in flight, and the HTTP side
    // bounds its requests.
    orders: mpsc::UnboundedSender<Order>,
}

/// Since when the thread has been at its current request.
#[derive(Clone, Default)]
pub struct KernelProgress(Arc<Mutex<Option<Instant>>>);

impl KernelProgress {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Whether the thread has been at one request for too long.
    pub fn is_stuck(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() > STUCK_AFTER)
    }
}

/// What [`Kernel::start`] opened.
pub struct Started {
    /// The way to the thread.
    pub kernel: Kernel,
    /// The programs' events.
    pub events: Events,
    /// The flow table, which is read and collected beside the thread.
    pub flows: FlowTable,
    /// For the watchdog.
    pub progress: KernelProgress,
    /// Resolves when the thread has ended.
    pub gone: oneshot::Receiver<()>,
}

impl Kernel {
    /// Opens the datapath in a new thread, which keeps the caller's network namespace.
    ///
    /// # Errors
    /// What the kernel lacks, and what to do about it.
    pub async fn start(
        config: LinuxConfig,
        core: Core,
        metrics: Arc<Metrics>,
    ) -> Result<Started, DatapathError> {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (opened, opening) = oneshot::channel();
        let (gone_sender, gone) = oneshot::channel::<()>();
        let agent = Handle::current();
        let progress = KernelProgress::default();
        let own_progress = progress.clone();
        thread::Builder::new()
            .name("warren-kernel".to_owned())
            .spawn(move || {
                // Dropped with the thread, also when the thread panics.
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
                        Ok((datapath, events, flows)) => {
                            drop(opened.send(Ok((events, flows))));
                            Worker { datapath, core, metrics, progress: own_progress }.run(inbox).await;
                        }
                    }
                });
            })
            .map_err(|error| DatapathError::NotReady(format!("no thread: {error}")))?;
        let (events, flows) =
            opening.await.map_err(|_| DatapathError::NotReady(KernelGone.to_string()))??;
        Ok(Started { kernel: Self { orders }, events, flows, progress, gone })
    }

    /// Sends a request; its result goes to the node. After the thread's end requests are dropped: the agent is about to
    /// end too.
    pub fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            debug!("{KernelGone}: order dropped");
        }
    }

    /// Reads something, after all earlier requests.
    ///
    /// # Errors
    /// [`KernelGone`]
    pub async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Datapath) -> T + Send + 'static,
    ) -> Result<T, KernelGone> {
        let (answer, answered) = oneshot::channel();
        let read = Box::new(move |datapath: &mut Datapath| {
            // The receiver may have been dropped meanwhile.
            drop(answer.send(read(datapath)));
        });
        self.orders.send(Order::Query(read)).map_err(|_| KernelGone)?;
        answered.await.map_err(|_| KernelGone)
    }

    /// The programs, and where they are attached.
    ///
    /// # Errors
    /// [`DatapathError::NotReady`] when the thread has ended; otherwise as [`Datapath::programs`].
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>, DatapathError> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Programs(answer));
        answered.await.map_err(|_| DatapathError::NotReady(KernelGone.to_string()))?
    }

    /// All programs and filters at the hooks of Warren's devices and of the named ones.
    ///
    /// # Errors
    /// [`DatapathError::NotReady`] when the thread has ended; otherwise as [`Datapath::hook_users`].
    pub async fn hook_users(&self, devices: Vec<String>) -> Result<Vec<HookUser>, DatapathError> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::HookUsers(devices, answer));
        answered.await.map_err(|_| DatapathError::NotReady(KernelGone.to_string()))?
    }
}

async fn open(config: LinuxConfig, agent: &Handle) -> Result<(Datapath, Events, FlowTable), DatapathError> {
    let mut datapath = Datapath::open(config).await?;
    // The agent's own runtime reads the ring, so that a long plan does not delay it.
    let guard = agent.enter();
    let events = datapath.events()?;
    drop(guard);
    let events = events.expect("nothing has taken the ring of a datapath opened just now");
    let flows = datapath.flow_table()?;
    Ok((datapath, events, flows))
}

struct Worker {
    datapath: Datapath,
    core: Core,
    metrics: Arc<Metrics>,
    progress: KernelProgress,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = inbox.recv().await {
            self.progress.set(Some(Instant::now()));
            let event = self.carry_out(order).await;
            self.progress.set(None);
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
}
