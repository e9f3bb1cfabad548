//! The shell around node-core: one task owns the node, events come in through one bounded channel, commands
//! are carried out by one `match`.
//!
//! Back-pressure: whoever has an event waits for room in the channel ([`INPUT_QUEUE`]); the loop itself
//! never waits for anybody. What it hands on goes to places that are bounded by the protocol (one plan or
//! observation at a time) or that keep only the newest (facts, sign of life).

mod collector;
mod core_loop;
mod events;
mod follow;
mod gossip;
mod kernel;
mod lease;
pub mod memory;
mod prober;
mod store;
mod underlay;

use std::time::Duration;

use backon::ExponentialBuilder;
use node_core::{Call, CallError, CallErrorKind, Event, Node, Reply};
use tokio::sync::{mpsc, oneshot};

pub use collector::collector;
pub use core_loop::{Clock, CoreLoop, Outlets};
pub use events::{EventHub, EventSources, name_party, pump};
pub use follow::follow;
pub use gossip::GossipLink;
pub use kernel::{Kernel, KernelGone, Order};
pub use lease::{LeaseKeeper, Sign};
pub use prober::Prober;
pub use store::StoreCalls;
pub use underlay::{UnderlayKeeper, UnderlayState, known as known_underlay};

/// Pauses after a failed attempt on the store: 50 to 100 ms, since a member that restarts is back in a moment, doubling up
/// to 2.5 to 5 s. The jitter spreads a fleet whose etcd comes back.
const RETRIES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_millis(2_500))
    .with_jitter()
    .without_max_times();

/// Events that wait for the node. A full queue means that the node is the bottleneck; then the store's
/// watch, gossip and API calls wait, and the kernel's events are dropped and counted.
pub const INPUT_QUEUE: usize = 1_024;

/// What comes into the loop.
pub enum Input {
    /// Something happened.
    Event(Event),
    /// Somebody wants a change, and an answer.
    Call(Call, oneshot::Sender<Result<Reply, CallError>>),
    /// Somebody wants to read.
    Read(Box<dyn FnOnce(&Node) + Send>),
}

/// The way to the node. Cheap to clone.
#[derive(Clone)]
pub struct Core {
    inputs: mpsc::Sender<Input>,
}

/// The loop has ended: the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is stopping")]
pub struct Stopping;

impl From<Stopping> for CallError {
    fn from(stopping: Stopping) -> Self {
        Self { kind: CallErrorKind::Unavailable, text: stopping.to_string() }
    }
}

impl Core {
    /// A way to the node, and the end that the loop reads from.
    pub fn channel() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(INPUT_QUEUE);
        (Self { inputs }, receiver)
    }

    /// Tells the node of an event; waits for room.
    ///
    /// # Errors
    /// [`Stopping`]: whoever has events may end.
    pub async fn event(&self, event: Event) -> Result<(), Stopping> {
        self.inputs.send(Input::Event(event)).await.map_err(|_| Stopping)
    }

    /// Carries out a call and waits for its answer.
    ///
    /// # Errors
    /// The node's, or `Unavailable` when the agent stops meanwhile.
    pub async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let (answer, answered) = oneshot::channel();
        self.inputs.send(Input::Call(call, answer)).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)?
    }

    /// Reads something of the node between two events. Keep it short: events wait meanwhile.
    ///
    /// # Errors
    /// [`Stopping`]
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (answer, answered) = oneshot::channel();
        let read = Box::new(move |node: &Node| {
            // Whoever asked may have gone; then nobody misses the answer.
            drop(answer.send(read(node)));
        });
        self.inputs.send(Input::Read(read)).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)
    }
}
