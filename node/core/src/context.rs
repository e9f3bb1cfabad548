//! What every component is handed beside its own state: time, configuration and random numbers, and the places where
//! results go (commands, requests to the store, kernel entries, changes for other components).

use datapath_plan::{Limits, Reconciler};
use identity::{LabelFilter, Labels};
use kvstore_claims::{ClaimError, FleetView, Machine, Protocol, Step};
use kvstore_schema::{KvOutcome, KvRequest};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::{
    CallError, CallErrorKind, CallId, Command, Counters, ErrorView, KvId, NodeConfig, Now, Reply,
    changes::Changes,
    requests::{Requests, Task, unanswered},
};

/// The environment of all components. One per node; it holds no belief about the fleet.
///
/// A component's method takes `cx: &mut Context`, then whatever it reads of other components, as arguments: the
/// signature shows what a step depends on, and a component's own state changes nowhere else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Context {
    pub config: NodeConfig,
    #[serde(with = "rng")]
    pub rng: fastrand::Rng,
    /// The time of the event that is being handled.
    pub now: Now,
    pub startup: Startup,
    /// The entries wanted in the kernel, and those that it is believed to hold.
    pub kernel: Reconciler,
    /// What components have changed that concerns other components.
    pub changes: Changes,
    pub counters: Counters,
    /// Requests to the store that wait for an answer, or to be sent again.
    pub requests: Requests,
    label_filter: LabelFilter,
    commands: Vec<Command>,
    last_error: Option<ErrorView>,
}

/// What has been seen since the agent's start, and hence what may be concluded from something missing. Written by the
/// wiring (`node`) only.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Startup {
    /// The kernel has been read once; before that it is not changed.
    pub kernel_read: bool,
    /// Whether the first complete listing may remove what the kernel holds; `None` until both have been seen.
    pub listing_trusted: Option<bool>,
    /// This agent began with a snapshot of the former one.
    pub snapshot_used: bool,
}

impl Startup {
    /// Whether the kernel has been read and a complete listing has been judged against it.
    pub(crate) fn is_over(&self) -> bool {
        self.listing_trusted.is_some()
    }

    /// Whether this node's endpoints and their records have both been seen, in the store or in a snapshot.
    pub(crate) fn knows_own_records(&self) -> bool {
        self.is_over() || (self.snapshot_used && self.kernel_read)
    }
}

/// A random number generator is serialised as its seed.
mod rng {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(rng: &fastrand::Rng, serializer: S) -> Result<S::Ok, S::Error> {
        rng.get_seed().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<fastrand::Rng, D::Error> {
        Ok(fastrand::Rng::with_seed(u64::deserialize(deserializer)?))
    }
}

impl Context {
    /// # Panics
    /// If a pattern of `identity_labels` is invalid: the agent checks its configuration before.
    pub(crate) fn new(config: NodeConfig) -> Self {
        let patterns = config.identity_labels.iter().map(|pattern| pattern.parse());
        let patterns = patterns.collect::<Result<Vec<_>, _>>().expect("the configuration was checked");
        // fastrand takes 64 bits: both halves of the seed are mixed into them.
        let seed = config.seed[0] ^ config.seed[1].rotate_left(32);
        Self {
            rng: fastrand::Rng::with_seed(seed),
            now: Now::default(),
            startup: Startup::default(),
            kernel: Reconciler::new(Limits::default()),
            changes: Changes::default(),
            counters: Counters::default(),
            requests: Requests::default(),
            label_filter: LabelFilter::new(patterns),
            commands: Vec::new(),
            last_error: None,
            config,
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    /// The commands of the event that was handled.
    pub(crate) fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    pub(crate) fn reply(&mut self, call: CallId, answer: Result<Reply, CallError>) {
        self.command(Command::Reply(call, answer));
    }

    pub(crate) fn refuse(&mut self, call: CallId, kind: CallErrorKind, text: String) {
        self.reply(call, Err(CallError { kind, text }));
    }

    /// Keeps a failure for `status`.
    pub(crate) fn error(&mut self, text: String) {
        self.last_error = Some(ErrorView { at: self.now.wall, text });
    }

    pub(crate) fn last_error(&self) -> Option<&ErrorView> {
        self.last_error.as_ref()
    }

    /// The labels that determine the identity.
    pub(crate) fn identity_labels(&self, labels: &Labels) -> Labels {
        self.label_filter.apply(labels)
    }

    /// Sends a request to the store; its answer is handed to `task`.
    pub(crate) fn ask(&mut self, request: KvRequest, task: Task) {
        let id: KvId = self.requests.sent(task);
        self.counters.kv_requests += 1;
        self.command(Command::Kv(id, request));
    }

    /// Has a request sent after a while.
    pub(crate) fn ask_later(&mut self, after: Duration, request: KvRequest, task: Task) {
        self.requests.wait(self.now.monotonic + after, request, task);
    }

    /// Hands an answer to a claim protocol. `None`: the protocol goes on, as the task that `again` makes of it.
    pub(crate) fn step<P: Protocol>(
        &mut self,
        view: &FleetView,
        mut machine: Machine<P>,
        outcome: KvOutcome,
        again: impl FnOnce(Machine<P>) -> Task,
    ) -> Option<Result<P::Output, ClaimError>> {
        let draw = self.rng.u64(..);
        match machine.on_outcome(outcome, view, draw) {
            Step::Ask(request) => self.ask(request, again(machine)),
            Step::Wait { after, .. } => {
                if let Step::Ask(request) = machine.resume() {
                    self.ask_later(after, request, again(machine));
                }
            }
            Step::Done(output) => return Some(Ok(output)),
            Step::Failed(error) => return Some(Err(error)),
        }
        None
    }

    /// The same for a protocol that serves a call: if the store does not answer, the caller is told and may try again.
    pub(crate) fn step_of_call<P: Protocol>(
        &mut self,
        view: &FleetView,
        call: CallId,
        machine: Machine<P>,
        outcome: KvOutcome,
        task: fn(CallId, Machine<P>) -> Task,
    ) -> Option<Result<P::Output, ClaimError>> {
        if let Some(text) = unanswered(&outcome) {
            self.refuse(call, CallErrorKind::Unavailable, text);
            return None;
        }
        self.step(view, machine, outcome, |machine| task(call, machine))
    }

    /// Forgets all requests, since the store that they were sent to has lost its content. Callers are told.
    pub(crate) fn abandon_requests(&mut self) {
        for task in self.requests.take_all() {
            let calls = match task {
                Task::PutServices(together, _) => together.iter().map(|write| write.call).collect(),
                Task::ReleaseBlock(_, Some(call), _)
                | Task::PutService(call, _)
                | Task::DeleteService(call, _)
                | Task::RemoveNode(_, call) => vec![call],
                _ => Vec::new(),
            };
            self.refuse_abandoned(calls);
        }
    }

    /// Tells callers that their request was abandoned.
    pub(crate) fn refuse_abandoned(&mut self, calls: Vec<CallId>) {
        for call in calls {
            let text =
                "the store was emptied or restored meanwhile; check the state, then try again".to_owned();
            self.refuse(call, CallErrorKind::Unavailable, text);
        }
    }
}
