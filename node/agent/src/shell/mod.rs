//! The shell around node-core: one task owns the node, events arrive through one bounded channel, and one `match`
//! carries out commands.
//!
//! Back-pressure: a task that has an event waits for room in the channel ([`INPUT_QUEUE`]); the loop itself never waits.
//! The queues behind the loop are bounded by the protocol (one plan or observation in flight), or keep only the newest
//! value (facts, liveness key).

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
pub use kernel::{Kernel, KernelGone, KernelProgress, Order};
pub use lease::{LeaseKeeper, LivenessKey};
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

/// The length of the loop's input queue. While it is full, the store's watch, gossip and API calls wait, and events of
/// the programs are dropped in the ring and counted.
pub const INPUT_QUEUE: usize = 1_024;

/// An input of the loop.
pub enum Input {
    /// An event.
    Event(Event),
    /// A call of the API, and where its answer goes.
    Call(Call, oneshot::Sender<Result<Reply, CallError>>),
    /// A read between two events.
    Read(Box<dyn FnOnce(&Node) + Send>),
}

/// The sending end of the loop's input queue. Cheap to clone.
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
    /// Both ends of a new input queue.
    pub fn channel() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(INPUT_QUEUE);
        (Self { inputs }, receiver)
    }

    /// Sends an event to the node; waits for room in the queue.
    ///
    /// # Errors
    /// [`Stopping`]: the caller may end.
    pub async fn event(&self, event: Event) -> Result<(), Stopping> {
        self.inputs.send(Input::Event(event)).await.map_err(|_| Stopping)
    }

    /// Carries out a call and waits for its answer.
    ///
    /// # Errors
    /// The node's error, or `Unavailable` when the agent stops meanwhile.
    pub async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let (answer, answered) = oneshot::channel();
        self.inputs.send(Input::Call(call, answer)).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)?
    }

    /// Reads the node between two events. `read` must be short, since events wait meanwhile.
    ///
    /// # Errors
    /// [`Stopping`]
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (answer, answered) = oneshot::channel();
        let read = Box::new(move |node: &Node| {
            // The receiver may have been dropped meanwhile.
            drop(answer.send(read(node)));
        });
        self.inputs.send(Input::Read(read)).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)
    }
}
