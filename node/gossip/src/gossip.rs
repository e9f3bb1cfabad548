//! The handle the agent holds.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use identity::NodeName;
use node_facts::{NodeFacts, encode};
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::{info, warn};

use crate::{
    GossipConfig, GossipError, GossipEvent, GossipStats, KeyId, Keyring, KeyringError, PeerStatus,
    PublishError,
    adapter::Membership,
    config::{EVENT_QUEUE, MAX_PEERS},
    relay::Relay,
    replay::SessionId,
    stats::Counters,
    supervisor::{Ends, Published, Supervisor},
    table::PeerTable,
    transport::{Link, lock},
    wire::{DrawSession, Opener, Sealer},
};

/// A running gossiper. One per agent; gossip ends when it is shut down or dropped.
pub struct Gossip {
    node: NodeName,
    place: watch::Sender<SocketAddr>,
    link: Arc<Link>,
    table: Arc<Mutex<PeerTable>>,
    generation: Arc<AtomicU64>,
    published: watch::Sender<Published>,
    wanted: watch::Sender<BTreeSet<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Gossip {
    /// Binds the socket and starts gossiping, without facts until [`Gossip::set_facts`].
    ///
    /// The receiver gets what is new about other nodes. It may be read slowly: events are coalesced by
    /// node and kind. When it is dropped, gossip goes on for the others' sake.
    ///
    /// # Errors
    /// A wrong configuration, or an address or port that cannot be had; the text says what to do.
    pub async fn start(config: GossipConfig) -> Result<(Self, mpsc::Receiver<GossipEvent>), GossipError> {
        config.validate()?;
        let bind_error = |source| GossipError::bind(config.bind, source);
        let socket = UdpSocket::bind(config.bind).await.map_err(bind_error)?;
        let bound = socket.local_addr().map_err(bind_error)?;
        let mut advertise = config.advertise;
        if advertise.port() == 0 {
            advertise.set_port(bound.port());
        }
        let relay = Relay::open().await.map_err(GossipError::Loopback)?;
        let draw_session = session_source().map_err(|error| GossipError::Random(error.to_string()))?;
        let link = Arc::new(Link {
            socket: Mutex::new(Arc::new(socket)),
            sealer: Mutex::new(Sealer::new(config.fleet.clone(), draw_session)),
            opener: Mutex::new(Opener::new(config.fleet.clone())),
            keyring: Mutex::new(Arc::new(config.keyring)),
            counters: Counters::default(),
        });
        let fleet_id = config.fleet_id.unwrap_or_default();
        let (published, published_rx) =
            watch::channel(Published { fleet_id: fleet_id.clone(), values: Arc::new(Vec::new()) });
        let (place, place_rx) = watch::channel(advertise);
        let (wanted, wanted_rx) = watch::channel(BTreeSet::new());
        let (events, events_rx) = mpsc::channel(EVENT_QUEUE);
        let table = Arc::new(Mutex::new(PeerTable::new(config.node.clone(), fleet_id, config.interval)));
        let generation = Arc::new(AtomicU64::new(config.incarnation));
        info!(node = %config.node, fleet = %config.fleet, address = %bound, %advertise, "gossip started");
        let membership = Membership {
            fleet: config.fleet,
            node: config.node.clone(),
            advertise,
            seeds: config.seeds,
            interval: config.interval,
        };
        let ends = Ends { published: published_rx, wanted: wanted_rx, place: place_rx, events };
        let supervisor =
            Supervisor::new(membership, link.clone(), relay, table.clone(), generation.clone(), ends);
        let gossip = Self {
            node: config.node,
            place,
            link,
            table,
            generation,
            published,
            wanted,
            task: tokio::spawn(supervisor.run()),
        };
        Ok((gossip, events_rx))
    }

    /// Says this of our node from now on, also after a restart of the chitchat task. Only values that
    /// changed are sent; publishing equal facts again costs nothing.
    ///
    /// # Errors
    /// When the facts break a rule or a limit, or are another node's: then what was published before
    /// still stands.
    pub fn set_facts(&self, facts: &NodeFacts) -> Result<(), PublishError> {
        if facts.node != self.node {
            return Err(PublishError::OtherNode { given: facts.node.clone(), own: self.node.clone() });
        }
        let values = encode(facts)?;
        let next = Published { fleet_id: facts.fleet_id.clone(), values: Arc::new(values) };
        self.published.send_if_modified(|current| {
            let changed = *current != next;
            *current = next;
            changed
        });
        Ok(())
    }

    /// Gossips with this address too, each round until a live peer is there. Adding it twice changes
    /// nothing. Seeds are fixed at the start; this is for peers found later, through etcd.
    pub fn add_peer(&self, address: SocketAddr) {
        self.wanted.send_if_modified(|wanted| {
            if wanted.len() >= MAX_PEERS && !wanted.contains(&address) {
                warn!(%address, limit = MAX_PEERS, "gossip peer not added: too many");
                return false;
            }
            wanted.insert(address)
        });
    }

    /// No longer gossips with this address while nobody living is there; seeds stay.
    pub fn forget_peer(&self, address: SocketAddr) {
        self.wanted.send_if_modified(|wanted| wanted.remove(&address));
    }

    /// This node has another address now: binds it, and gossips from there under a new generation, as after a start.
    /// What was published and who was named stays. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`GossipError`] if the address or port cannot be had (yet): then gossip goes on where it was.
    pub async fn move_to(&self, address: SocketAddr) -> Result<(), GossipError> {
        if *self.place.borrow() == address {
            return Ok(());
        }
        let bind_error = |source| GossipError::bind(address, source);
        let socket = UdpSocket::bind(address).await.map_err(bind_error)?;
        let bound = socket.local_addr().map_err(bind_error)?;
        *lock(&self.link.socket) = Arc::new(socket);
        info!(node = %self.node, address = %bound, "gossip moves");
        self.place.send_replace(bound);
        Ok(())
    }

    /// All other nodes that gossip remembers, by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        lock(&self.table).status(Instant::now())
    }

    /// The counters.
    pub fn stats(&self) -> GossipStats {
        self.link.counters.snapshot()
    }

    /// The ids of the installed keys, that of the one in use first.
    pub fn key_ids(&self) -> Vec<KeyId> {
        lock(&self.link.keyring).ids()
    }

    /// Changes the keyring, for the next datagram on: `gossip.update_keyring(|ring| ring.install(key))`.
    ///
    /// # Errors
    /// What `change` says; the keyring is as it was then.
    pub fn update_keyring(
        &self,
        change: impl FnOnce(&mut Keyring) -> Result<(), KeyringError>,
    ) -> Result<(), KeyringError> {
        let mut current = lock(&self.link.keyring);
        let mut next = Keyring::clone(&current);
        change(&mut next)?;
        *current = Arc::new(next);
        Ok(())
    }

    /// Where peers reach this node, with the port that was bound.
    pub fn address(&self) -> SocketAddr {
        *self.place.borrow()
    }

    /// The generation under which this node gossips: the configured incarnation, or a higher one after
    /// a restart of the chitchat task or a move. The next start of the agent must use a higher one still; the
    /// time in ms does, unless the clock was set back.
    pub fn incarnation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Stops gossiping and frees the port. Peers see this node fall silent; nothing tells them that it
    /// meant to.
    pub async fn shutdown(self) {
        drop((self.published, self.wanted, self.place));
        // The supervisor ends when its channels close; a panic of its own has been printed already.
        let _ = self.task.await;
    }
}

/// Draws session ids from the operating system.
fn session_source() -> Result<DrawSession, io::Error> {
    fn draw() -> Result<SessionId, io::Error> {
        let mut bits = [0; 8];
        getrandom::fill(&mut bits).map_err(io::Error::other)?;
        Ok(SessionId(bits))
    }
    draw()?;
    Ok(Box::new(|| draw().expect("the operating system's randomness, once there, does not go away")))
}
