//! A small fleet of real gossipers on loopback, and conditions to wait for.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use identity::{FleetName, NodeName};
use node_facts::{CidrFact, Liveness, NodeFacts, NodeHealth};
use node_gossip::{Gossip, GossipConfig, GossipEvent, GossipKey, Keyring};

/// Rounds are short, so that tests are fast, but long enough for a busy machine.
pub const INTERVAL: Duration = Duration::from_millis(50);
/// The time-out of every condition.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Incarnations rise over all tests of a process, as they do over starts of an agent.
static INCARNATION: AtomicU64 = AtomicU64::new(1_700_000_000_000);

/// The events that a node's agent has received.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub facts: BTreeMap<String, Arc<NodeFacts>>,
    pub live: BTreeMap<String, bool>,
    pub rejected: Vec<(String, String)>,
}

/// A gossiper with a reader of its events.
pub struct Member {
    pub gossip: Gossip,
    heard: Arc<Mutex<Heard>>,
}

pub fn key(seed: u8) -> GossipKey {
    GossipKey::parse(&format!("{seed:02x}").repeat(32)).unwrap()
}

pub fn config(name: &str, seeds: &[SocketAddr]) -> GossipConfig {
    GossipConfig {
        fleet: FleetName::new("alpha").unwrap(),
        fleet_id: None,
        node: NodeName::new(name).unwrap(),
        incarnation: INCARNATION.fetch_add(1_000_000, Ordering::Relaxed),
        bind: "127.0.0.1:0".parse().unwrap(),
        advertise: "127.0.0.1:0".parse().unwrap(),
        seeds: seeds.iter().map(ToString::to_string).collect(),
        interval: INTERVAL,
        keyring: Keyring::new(key(1)),
    }
}

pub fn facts(name: &str, generation: u64) -> NodeFacts {
    NodeFacts {
        fleet_id: "f1".to_owned(),
        node: NodeName::new(name).unwrap(),
        incarnation: 1,
        underlay: vec!["192.0.2.1".parse().unwrap()],
        moves: 0,
        gateway: None,
        cidrs: vec![CidrFact { cidr: "10.0.0.0/24".parse().unwrap(), life: 0, epoch: 7 }],
        applied_generation: generation,
        recorded_life: 0,
        cut_off: false,
        recorded_revision: 0,
        health: NodeHealth::Ok,
        pending: vec![],
        unwell: Vec::new(),
    }
}

impl Member {
    pub async fn start(config: GossipConfig) -> Self {
        let (gossip, mut events) = Gossip::start(config).await.expect("gossip starts");
        let heard = Arc::new(Mutex::new(Heard::default()));
        let writer = heard.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let mut heard = writer.lock().unwrap();
                match event {
                    GossipEvent::Facts { node, facts } => {
                        heard.facts.insert(node.to_string(), facts);
                    }
                    GossipEvent::Live { node, liveness } => {
                        heard.live.insert(node.to_string(), liveness != Liveness::Dead);
                    }
                    GossipEvent::Rejected { node, reason } => heard.rejected.push((node, reason)),
                }
            }
        });
        Self { gossip, heard }
    }

    pub fn address(&self) -> SocketAddr {
        self.gossip.address()
    }

    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }

    pub fn sees(&self, name: &str, alive: bool) -> bool {
        self.heard().live.get(name) == Some(&alive)
    }

    pub fn knows(&self, facts: &NodeFacts) -> bool {
        self.heard().facts.get(facts.node.as_str()).is_some_and(|known| **known == *facts)
    }
}

/// Waits until a condition holds; fails with its description after [`DEADLINE`].
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Members `n0..`, each with the first one as its seed, all of which see each other.
pub async fn fleet(size: usize) -> Vec<Member> {
    fleet_at(size, INTERVAL).await
}

/// As [`fleet`], with another interval. A node that needs ten times as long for a round counts as dead.
pub async fn fleet_at(size: usize, interval: Duration) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for index in 0..size {
        let seeds: Vec<SocketAddr> = members.first().map(Member::address).into_iter().collect();
        let config = GossipConfig { interval, ..config(&format!("n{index}"), &seeds) };
        members.push(Member::start(config).await);
    }
    let all_see_all = || {
        members.iter().enumerate().all(|(me, member)| {
            (0..size).filter(|other| *other != me).all(|other| member.sees(&format!("n{other}"), true))
        })
    };
    until("all see all", all_see_all).await;
    members
}
