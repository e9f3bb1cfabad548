//! Keeps a chitchat task running, tells it our facts, and reports what it learns.

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
use chitchat::{ChitchatHandle, spawn_chitchat};
use node_facts::Liveness;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{interval, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    GossipEvent,
    adapter::{Membership, chitchat_config, sightings},
    inbox::Inbox,
    relay::Relay,
    stats::count,
    table::PeerTable,
    transport::{Link, SealedTransport, lock, now_ms},
};

/// Pauses before chitchat is started again: 100 to 200 ms, doubling up to 5 to 10 s. Peers see this node as dead
/// meanwhile.
const RESTARTS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(Duration::from_secs(5))
    .with_jitter()
    .without_max_times();
/// A run this long shows that the trouble is over.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// How long a stopping chitchat task may finish its round.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Peers told at once of changed facts, rather than in the next round; all of a small fleet.
const PUSH_PEERS: usize = 8;
/// Between two such pushes, so that a burst of changes costs one.
const PUSH_GAP: Duration = Duration::from_millis(20);
/// Silent wanted peers greeted in a round, as many as chitchat's own choice of peers.
const GREET_PEERS: usize = 3;
/// How often a round it is looked who has fallen silent: a death is known so much sooner.
const SILENCE_LOOKS: u32 = 4;
/// Known incarnations from which on the operator is warned: above about 2,570 a handshake panics.
const CROWDED: usize = 2_000;

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
    /// Where this node is reached.
    pub place: watch::Receiver<SocketAddr>,
    pub events: mpsc::Sender<GossipEvent>,
}

/// Why a run of the chitchat task ended.
enum End {
    Stopped,
    /// This node has another address: peers must learn it, and chitchat's is fixed at its start.
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
    place: watch::Receiver<SocketAddr>,
    events: mpsc::Sender<GossipEvent>,
    inbox: Inbox,
    crowded: bool,
    /// chitchat knows nobody, whatever we remember: it was started just now.
    alone: bool,
    /// Where the next greetings and pushes begin, so that everybody has their turn.
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
        let Ends { published, wanted, place, events } = ends;
        let inbox = Inbox::default();
        Self {
            membership,
            link,
            transport,
            table,
            generation,
            published,
            wanted,
            place,
            events,
            inbox,
            crowded: false,
            alone: true,
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
                End::Stopped => return,
                End::Moved => {
                    let generation = next_generation(self.generation.load(Ordering::Acquire), now_ms());
                    self.generation.store(generation, Ordering::Release);
                    continue;
                }
                End::Died(reason) => reason,
            };
            count(&self.link.counters.restarts);
            if started.elapsed() >= STABLE_AFTER {
                pauses = RESTARTS.build();
            }
            // The same generation again would diverge silently and for ever (FACTS): peers know later
            // versions of it than the new task will write. A clock that was set back must not repeat one.
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

    async fn run_once(&mut self) -> End {
        let published = self.published.borrow_and_update().clone();
        self.membership.advertise = *self.place.borrow_and_update();
        lock(&self.table).set_fleet_id(&published.fleet_id);
        let initial = published.values.as_ref().clone();
        // Resolving a seed's name may take long: the handle can go meanwhile.
        let config = chitchat_config(&self.membership, self.generation.load(Ordering::Acquire));
        let mut wanted = self.wanted.clone();
        let stopped = async move { while wanted.changed().await.is_ok() {} };
        let handle = tokio::select! {
            spawned = spawn_chitchat(config, initial, &self.transport) => match spawned {
                Ok(handle) => handle,
                Err(error) => return End::Died(format!("{error:#}")),
            },
            () = stopped => return End::Stopped,
        };
        let end = self.serve(&handle).await;
        if !matches!(end, End::Died(_)) && timeout(STOP_TIMEOUT, handle.shutdown()).await.is_err() {
            warn!("gossip task did not stop in time");
        }
        end
    }

    async fn serve(&mut self, handle: &ChitchatHandle) -> End {
        // The callback runs under chitchat's one mutex: it may do nothing but ring a bell. Deletions ring
        // none; they are seen because `facts`, written with them, changes too.
        let bell = Arc::new(Notify::new());
        let ring = bell.clone();
        let _subscription = handle
            .with_chitchat(|chitchat| {
                let ring = ring.clone();
                chitchat.subscribe_event("", move |_| ring.notify_one())
            })
            .await;
        let terminated = handle.termination_watcher();
        tokio::pin!(terminated);
        let mut rounds = interval(self.membership.interval);
        let mut silences = interval(self.membership.interval / SILENCE_LOOKS);
        let mut push_due: Option<tokio::time::Instant> = None;
        let mut last_push = tokio::time::Instant::now();
        let events = self.events.clone();
        let mut reading = true;
        loop {
            tokio::select! {
                result = &mut terminated => {
                    return End::Died(result.map_or_else(|error| format!("{error:#}"), |()| "stopped by itself".to_owned()));
                }
                changed = self.published.changed() => {
                    if changed.is_err() {
                        return End::Stopped;
                    }
                    self.publish(handle).await;
                    push_due.get_or_insert(last_push + PUSH_GAP);
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return End::Stopped;
                    }
                    self.greet(handle);
                }
                changed = self.place.changed() => {
                    return if changed.is_ok() { End::Moved } else { End::Stopped };
                }
                () = bell.notified() => self.observe(handle).await,
                _ = rounds.tick() => {
                    self.observe(handle).await;
                    self.greet(handle);
                }
                _ = silences.tick() => {
                    let events = lock(&self.table).silences(Instant::now());
                    self.report(events);
                }
                () = sleep_until(push_due.unwrap_or(last_push)), if push_due.is_some() => {
                    push_due = None;
                    last_push = tokio::time::Instant::now();
                    self.push(handle);
                }
                permit = events.reserve(), if reading && !self.inbox.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(event) = self.inbox.pop() {
                            permit.send(event);
                        }
                    }
                    Err(_) => reading = false,
                },
            }
        }
    }

    /// Writes our facts into chitchat's state: only what changed gets a new version there.
    async fn publish(&mut self, handle: &ChitchatHandle) {
        let Published { fleet_id, values } = self.published.borrow_and_update().clone();
        lock(&self.table).set_fleet_id(&fleet_id);
        handle
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                let gone: Vec<String> = state
                    .key_values()
                    .filter(|(key, _)| !values.iter().any(|(kept, _)| kept == key))
                    .map(|(key, _)| key.to_owned())
                    .collect();
                for (key, value) in values.iter() {
                    state.set(key, value);
                }
                for key in gone {
                    state.delete(&key);
                }
            })
            .await;
    }

    async fn observe(&mut self, handle: &ChitchatHandle) {
        let table = self.table.clone();
        // chitchat's mutex is held for copying only what changed; decoding happens after.
        let sightings = handle.with_chitchat(|chitchat| sightings(chitchat, &lock(&table))).await;
        self.alone = sightings.is_empty();
        if self.crowded != (sightings.len() >= CROWDED) {
            self.crowded = !self.crowded;
            if self.crowded {
                warn!(
                    known = sightings.len(),
                    "gossip knows too many nodes and former incarnations: split the fleet"
                );
            }
        }
        let events = lock(&table).observe(Instant::now(), sightings);
        self.report(events);
    }

    fn report(&mut self, events: Vec<GossipEvent>) {
        for event in events {
            match &event {
                // A late round is no news; the node is asked.
                GossipEvent::Live { node, liveness: Liveness::Silent } => {
                    debug!(%node, "gossip peer is silent")
                }
                GossipEvent::Live { node, liveness } => info!(%node, ?liveness, "gossip peer"),
                GossipEvent::Rejected { node, reason } => warn!(node, reason, "gossip rejected"),
                GossipEvent::Facts { .. } => {}
            }
            if self.inbox.push(event) {
                count(&self.link.counters.events_coalesced);
            }
        }
    }

    /// Greets peers that etcd named and that are not alive here: chitchat never would by itself. A chitchat that knows
    /// nobody is told of everybody: after a move nobody else could begin.
    fn greet(&mut self, handle: &ChitchatHandle) {
        let mut silent = self.wanted.borrow().clone();
        if self.alone {
            silent.extend(self.live_addresses());
        } else {
            let alive = self.live_addresses();
            silent.retain(|address| !alive.contains(address));
        }
        silent.remove(&self.membership.advertise);
        let silent: Vec<SocketAddr> = silent.into_iter().collect();
        self.handshake(handle, &silent, GREET_PEERS);
    }

    /// Brings changed facts to living peers now.
    fn push(&mut self, handle: &ChitchatHandle) {
        let alive = self.live_addresses();
        self.handshake(handle, &alive, PUSH_PEERS);
    }

    fn live_addresses(&self) -> Vec<SocketAddr> {
        let peers = lock(&self.table).status(Instant::now());
        peers.iter().filter(|peer| peer.alive).map(|peer| peer.address).collect()
    }

    fn handshake(&mut self, handle: &ChitchatHandle, addresses: &[SocketAddr], most: usize) {
        for address in
            addresses.iter().cycle().skip(self.turn % addresses.len().max(1)).take(most.min(addresses.len()))
        {
            // An error means that the task has ended, of which the watchdog hears by itself.
            let _ = handle.gossip(*address);
        }
        self.turn = self.turn.wrapping_add(most);
    }
}

/// Strictly above the previous one, and the present time if the clock allows.
fn next_generation(previous: u64, now_ms: u64) -> u64 {
    now_ms.max(previous.saturating_add(1))
}
