//! The agent's handle.

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

/// A running gossiper. One per agent; gossip stops when the handle is shut down or dropped.
pub struct Gossip {
    node: NodeName,
    own_address: watch::Sender<SocketAddr>,
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
    /// The receiver gets the news about other nodes. It may be read slowly: events are coalesced by node and kind. If
    /// it is dropped, gossip continues for the benefit of the others.
    ///
    /// # Errors
    /// An invalid configuration, or an address or port that cannot be bound; the text names the remedy.
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
        let (own_address, address_rx) = watch::channel(advertise);
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
        let ends = Ends { published: published_rx, wanted: wanted_rx, address: address_rx, events };
        let supervisor =
            Supervisor::new(membership, link.clone(), relay, table.clone(), generation.clone(), ends);
        let gossip = Self {
            node: config.node,
            own_address,
            link,
            table,
            generation,
            published,
            wanted,
            task: tokio::spawn(supervisor.run()),
        };
        Ok((gossip, events_rx))
    }

    /// Publishes these facts of this node from now on, also after a restart of the chitchat task. Only changed values
    /// are sent; publishing equal facts again costs nothing.
    ///
    /// # Errors
    /// When the facts break a rule or a limit, or are another node's: the facts published before stay.
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

    /// Adds a peer: gossip contacts the address each round until a live peer is there. Adding it twice changes
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

    /// Stops contacting this address while no live peer is there; seeds stay.
    pub fn forget_peer(&self, address: SocketAddr) {
        self.wanted.send_if_modified(|wanted| wanted.remove(&address));
    }

    /// Gives this node another address: binds it, and gossips from there under a new generation, as after a start.
    /// Facts and peers stay. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`GossipError`] if the address or port cannot be bound (yet): gossip continues at the old address.
    pub async fn move_to(&self, address: SocketAddr) -> Result<(), GossipError> {
        if *self.own_address.borrow() == address {
            return Ok(());
        }
        let bind_error = |source| GossipError::bind(address, source);
        let socket = UdpSocket::bind(address).await.map_err(bind_error)?;
        let bound = socket.local_addr().map_err(bind_error)?;
        *lock(&self.link.socket) = Arc::new(socket);
        info!(node = %self.node, address = %bound, "gossip moves");
        self.own_address.send_replace(bound);
        Ok(())
    }

    /// All other known nodes, by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        lock(&self.table).status(Instant::now())
    }

    /// The counters.
    pub fn stats(&self) -> GossipStats {
        self.link.counters.snapshot()
    }

    /// The ids of the installed keys, the primary one first.
    pub fn key_ids(&self) -> Vec<KeyId> {
        lock(&self.link.keyring).ids()
    }

    /// Changes the keyring, effective with the next datagram: `gossip.update_keyring(|ring| ring.install(key))`.
    ///
    /// # Errors
    /// The error of `change`; the keyring is unchanged then.
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

    /// The address that peers use for this node, with the bound port.
    pub fn address(&self) -> SocketAddr {
        *self.own_address.borrow()
    }

    /// The generation of this node's gossip: the configured incarnation, or a higher one after a restart of the
    /// chitchat task or a change of address. The next start of the agent must use a higher one; the time in ms is
    /// higher, unless the clock was set back.
    pub fn incarnation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Stops gossiping and frees the port. Peers see this node fall silent, without an announcement.
    pub async fn shutdown(self) {
        drop((self.published, self.wanted, self.own_address));
        // The supervisor ends when its channels close; a panic of its own was printed already.
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
