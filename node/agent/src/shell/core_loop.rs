//! The loop that owns the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use datapath_plan::{EndpointId, Entry, Op, Plan, TableKey};
use identity::EndpointName;
use node_core::{Call, CallError, CallId, Command, Event, Node, Now, Reply, SavedEndpoint, Snapshot};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{GossipLink, Input, Kernel, LeaseKeeper, LivenessKey, Order, Prober, StoreCalls};
use crate::{
    endpoints::EndpointKeeper, machine, metrics::Metrics, recorder::Recorder, snapshot::SnapshotKeeper,
};

/// The clocks that events are stamped with.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The time of an event that happens now.
    pub fn now(&self) -> Now {
        Now { monotonic: self.start.elapsed(), wall: machine::wall() }
    }
}

/// The parts that carry out commands.
pub struct Outlets {
    /// Plans and observations.
    pub kernel: Kernel,
    /// Requests to the store.
    pub store: StoreCalls,
    /// The liveness key.
    pub lease: LeaseKeeper,
    /// Facts and peers; `None` for a fleet of one node.
    pub gossip: Option<GossipLink>,
    /// Health probes of backends and nodes.
    pub prober: Prober,
    /// Snapshots; `None` for a fleet of one node, whose store is its own file.
    pub snapshots: Option<SnapshotKeeper>,
    /// Endpoint files.
    pub endpoints: EndpointKeeper,
}

/// The node, and what the loop needs to run it.
pub struct CoreLoop {
    /// The node.
    pub node: Node,
    /// The snapshot of the previous agent.
    pub snapshot: Option<Box<Snapshot>>,
    /// The endpoint files of the previous agent.
    pub endpoints: Vec<SavedEndpoint>,
    /// The input queue.
    pub inputs: mpsc::Receiver<Input>,
    /// The parts that carry out commands.
    pub outlets: Outlets,
    /// The clocks.
    pub clock: Clock,
    /// The log of events; `None` where it is switched off.
    pub recorder: Option<Recorder>,
    /// Metrics of the loop.
    pub metrics: Arc<Metrics>,
    /// Ends the loop.
    pub stop: CancellationToken,
}

/// How long a plan that attaches endpoints waits for their files. Longer, and a disk that hangs would keep everything else
/// in the plan from the kernel.
const FILE_PATIENCE: Duration = Duration::from_secs(1);

/// A call without an answer yet.
struct PendingCall {
    answer: oneshot::Sender<Result<Reply, CallError>>,
    /// The answer waits for the files of endpoints of this name.
    endpoint: Option<EndpointName>,
}

/// The state of the loop between events.
#[derive(Default)]
struct Pending {
    calls: BTreeMap<CallId, PendingCall>,
    last_call: u64,
    wake_at: Option<Duration>,
}

impl CoreLoop {
    /// Runs until the agent stops. Pending calls then fail with [`super::Stopping`].
    pub async fn run(mut self) {
        let mut pending = Pending::default();
        if let Some(recorder) = &mut self.recorder {
            recorder.begin(&self.node);
        }
        let (snapshot, endpoints) = (self.snapshot.take(), std::mem::take(&mut self.endpoints));
        self.handle(&mut pending, Event::Started { snapshot, endpoints });
        loop {
            // Computed in each round, since a requested wake-up replaces the previous one.
            let wake = pending.wake_at.map(|at| at.saturating_sub(self.clock.now().monotonic));
            let input = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                input = self.inputs.recv() => input,
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => {
                    pending.wake_at = None;
                    Some(Input::Event(Event::Woke))
                }
            };
            match input {
                None => break,
                Some(Input::Event(event)) => self.handle(&mut pending, event),
                Some(Input::Read(read)) => read(&self.node),
                Some(Input::Call(call, answer)) => {
                    pending.last_call += 1;
                    let id = CallId(pending.last_call);
                    debug!(call = id.0, ?call, "called");
                    pending.calls.insert(id, PendingCall { answer, endpoint: endpoint_of(&call) });
                    self.handle(&mut pending, Event::Called(id, call));
                }
            }
        }
        if let (Some(snapshots), Some(last)) = (&self.outlets.snapshots, self.node.snapshot()) {
            snapshots.keep(Box::new(last));
        }
    }

    fn handle(&mut self, pending: &mut Pending, event: Event) {
        if let Event::ExternallyModified(keys) = &event {
            self.log_externally_modified(keys);
        }
        let begin = Instant::now();
        let now = self.clock.now();
        if let Some(recorder) = &mut self.recorder {
            recorder.before(now, &event, &self.node);
        }
        let commands = self.node.handle(now, event);
        if let Some(recorder) = &mut self.recorder {
            recorder.after(&commands, &self.node);
        }
        self.metrics.handle_seconds.observe(begin.elapsed().as_secs_f64());
        for command in commands {
            self.carry_out(pending, command);
        }
    }

    /// Logs entries of the node that another process changed. Entries that the node itself removes are not wanted any more.
    fn log_externally_modified(&self, keys: &BTreeSet<TableKey>) {
        /// The most names in one line of the log.
        const SHOWN: usize = 8;
        let wanted = self.node.wanted();
        let changed: Vec<&TableKey> = keys.iter().filter(|key| wanted.get(key).is_some()).collect();
        if !changed.is_empty() {
            let what: Vec<String> = changed.iter().take(SHOWN).map(ToString::to_string).collect();
            info!(
                what = what.join(", "),
                count = changed.len(),
                "the network stack was changed by another process"
            );
        }
    }

    fn carry_out(&mut self, pending: &mut Pending, command: Command) {
        let Outlets { kernel, store, lease, gossip, prober, snapshots, endpoints } = &self.outlets;
        match command {
            Command::Apply(plan) => apply(plan, kernel, endpoints),
            Command::Observe => kernel.order(Order::Observe),
            Command::Kv(id, request) => store.request(id, request),
            Command::KeepAlive { key, value, ttl, fence } => {
                lease.keep(LivenessKey { key, value, ttl, fence })
            }
            Command::Publish(facts) => {
                if let Some(gossip) = gossip {
                    gossip.publish(&facts);
                }
            }
            Command::AddPeer(address) => {
                if let Some(gossip) = gossip {
                    gossip.add_peer(address);
                }
            }
            Command::ForgetPeer(address) => {
                if let Some(gossip) = gossip {
                    gossip.forget_peer(address);
                }
            }
            Command::Probe(probes) => prober.ask(probes),
            Command::Persist(snapshot) => {
                if let Some(snapshots) = snapshots {
                    snapshots.keep(snapshot);
                }
            }
            Command::PersistEndpoint(id, saved) => endpoints.keep(id, saved),
            Command::Reply(id, result) => match pending.calls.remove(&id) {
                // The caller may have gone meanwhile.
                Some(PendingCall { answer, endpoint: None }) => drop(answer.send(result)),
                Some(PendingCall { answer, endpoint: Some(name) }) => {
                    endpoints.when_named_written(&name, move || drop(answer.send(result)));
                }
                None => error!(call = id.0, "reply to an unknown call"),
            },
            Command::WakeAt(at) => pending.wake_at = Some(at),
            Command::Halt(reason) => info!(reason, "node halted; the kernel stays as it is"),
        }
    }
}

/// The name of the endpoint that a call concerns.
fn endpoint_of(call: &Call) -> Option<EndpointName> {
    match call {
        Call::EndpointAdd(spec) => Some(spec.name.clone()),
        Call::EndpointDelete(name) | Call::EndpointDrain(name) => Some(name.clone()),
        Call::NodeRemove(_)
        | Call::CidrRelease(_)
        | Call::ServicePut { .. }
        | Call::ServiceDelete { .. }
        | Call::Audit { .. } => None,
    }
}

/// Applies a plan, after the files of the endpoints that it attaches are written.
fn apply(plan: Plan, kernel: &Kernel, endpoints: &EndpointKeeper) {
    let attached = |op: &Op| match op {
        Op::Put(Entry::Endpoint(id, _)) => Some(*id),
        _ => None,
    };
    let attached: Vec<EndpointId> = plan.ops.iter().filter_map(attached).collect();
    if attached.is_empty() {
        return kernel.order(Order::Apply(plan));
    }
    let (written, all_written) = oneshot::channel();
    endpoints.when_written(attached, move || {
        // The task may have stopped waiting.
        let _ = written.send(());
    });
    let kernel = kernel.clone();
    tokio::spawn(async move {
        if timeout(FILE_PATIENCE, all_written).await.is_err() {
            warn!(waited = ?FILE_PATIENCE, "endpoint files are not written yet; endpoints are attached without them");
        }
        kernel.order(Order::Apply(plan));
    });
}
