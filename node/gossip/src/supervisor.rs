//! Keeps a chitchat task running, gives it our facts, and reports what it learns.

mod session;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use chitchat::spawn_chitchat;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::warn;

use crate::{
    GossipEvent,
    adapter::{Membership, chitchat_config},
    inbox::Inbox,
    relay::Relay,
    stats::count,
    table::PeerTable,
    transport::{Link, SealedTransport, lock, now_ms},
};

/// Pauses before chitchat is restarted: 100 to 200 ms, doubling up to 5 to 10 s. Peers consider this node silent
/// meanwhile.
const RESTARTS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(Duration::from_secs(5))
    .with_jitter()
    .without_max_times();
/// A run of this length resets the back-off.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// How long a stopping chitchat task may take to finish its round.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Our facts as keys and values, in the order of writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub fleet_id: String,
    pub values: Arc<Vec<(String, String)>>,
}

/// The supervisor's ends of the channels to the handle and the agent.
pub(crate) struct Ends {
    pub published: watch::Receiver<Published>,
    pub wanted: watch::Receiver<BTreeSet<SocketAddr>>,
    /// The address of this node.
    pub address: watch::Receiver<SocketAddr>,
    pub events: mpsc::Sender<GossipEvent>,
}

/// Why a run of the chitchat task ended.
enum RunEnd {
    Stopped,
    /// This node has another address: peers must learn it, and chitchat's address is fixed at its start.
    Moved,
    Died(String),
}

pub(crate) struct Supervisor {
    membership: Membership,
    link: Arc<Link>,
    transport: SealedTransport,
    table: Arc<Mutex<PeerTable>>,
    generation: Arc<AtomicU64>,
    published: watch::Receiver<Published>,
    wanted: watch::Receiver<BTreeSet<SocketAddr>>,
    address: watch::Receiver<SocketAddr>,
    events: mpsc::Sender<GossipEvent>,
    inbox: Inbox,
    crowded: bool,
    /// chitchat knows no node, whatever we remember: it has just been started.
    knows_no_node: bool,
    /// Where the next contacts and pushes begin, so that every peer gets its turn.
    turn: usize,
}

impl Supervisor {
    pub fn new(
        membership: Membership,
        link: Arc<Link>,
        relay: Relay,
        table: Arc<Mutex<PeerTable>>,
        generation: Arc<AtomicU64>,
        ends: Ends,
    ) -> Self {
        let transport = SealedTransport::new(link.clone(), relay);
        let Ends { published, wanted, address, events } = ends;
        let inbox = Inbox::default();
        Self {
            membership,
            link,
            transport,
            table,
            generation,
            published,
            wanted,
            address,
            events,
            inbox,
            crowded: false,
            knows_no_node: true,
            turn: 0,
        }
    }

    /// Runs until the handle is gone.
    pub async fn run(mut self) {
        let mut pauses = RESTARTS.build();
        loop {
            let started = Instant::now();
            lock(&self.table).set_own_generation(self.generation.load(Ordering::Acquire));
            let reason = match self.run_once().await {
                RunEnd::Stopped => return,
                RunEnd::Moved => {
                    let generation = next_generation(self.generation.load(Ordering::Acquire), now_ms());
                    self.generation.store(generation, Ordering::Release);
                    continue;
                }
                RunEnd::Died(reason) => reason,
            };
            count(&self.link.counters.restarts);
            if started.elapsed() >= STABLE_AFTER {
                pauses = RESTARTS.build();
            }
            // The same generation again would make peers diverge silently and for ever (FACTS): they know later
            // versions of it than the new task will write. A clock that was set back must not repeat a generation.
            let generation = next_generation(self.generation.load(Ordering::Acquire), now_ms());
            self.generation.store(generation, Ordering::Release);
            let pause = pauses.next().expect("attempts are not limited");
            warn!(reason, generation, ?pause, "gossip task ended; starting it again");
            if timeout(pause, self.stopped()).await.is_ok() {
                return;
            }
        }
    }

    /// Resolves when the handle is gone.
    async fn stopped(&mut self) {
        while self.wanted.changed().await.is_ok() {}
    }

    async fn run_once(&mut self) -> RunEnd {
        let published = self.published.borrow_and_update().clone();
        self.membership.advertise = *self.address.borrow_and_update();
        lock(&self.table).set_fleet_id(&published.fleet_id);
        let initial = published.values.as_ref().clone();
        // Resolving a seed's name may take long: the handle may be dropped meanwhile.
        let config = chitchat_config(&self.membership, self.generation.load(Ordering::Acquire));
        let mut wanted = self.wanted.clone();
        let stopped = async move { while wanted.changed().await.is_ok() {} };
        let handle = tokio::select! {
            spawned = spawn_chitchat(config, initial, &self.transport) => match spawned {
                Ok(handle) => handle,
                Err(error) => return RunEnd::Died(format!("{error:#}")),
            },
            () = stopped => return RunEnd::Stopped,
        };
        let end = self.serve(&handle).await;
        if !matches!(end, RunEnd::Died(_)) && timeout(STOP_TIMEOUT, handle.shutdown()).await.is_err() {
            warn!("gossip task did not stop in time");
        }
        end
    }
}

/// Strictly above the previous generation, and the present time if the clock allows.
fn next_generation(previous: u64, now_ms: u64) -> u64 {
    now_ms.max(previous.saturating_add(1))
}
