//! A fleet in one value: nodes, their kernels, one store, gossip, and time by hand.
//!
//! Everything that may happen next (a request carried out, an answer, a batch of changes, a fact told) is a
//! pending action; which one happens is drawn from a seed, and P3 is checked after each. No thread, no clock.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use datapath_plan::Attachment;
use identity::{EndpointName, Identity, Labels};
use kvstore_schema::{Revision, Schema, StoreIdentity};
use kvstore_store::MemState;
use node_core::{Call, CallError, CallId, EndpointSpec, Node, NodeConfig, Reply, Underlay};

use crate::{Agent, check};

/// The most steps of one `settle`: a fleet that is not quiet by then will never be.
const MAX_STEPS: usize = 2_000_000;

/// The whole fleet.
pub struct Sim {
    /// The one store.
    pub store: MemState,
    /// Node `n` is `agents[n - 1]`.
    pub agents: Vec<Agent>,
    /// Since the fleet began.
    pub now: Duration,
    /// Whether gossip reaches anybody.
    pub gossip: bool,
    rng: fastrand::Rng,
    calls: u64,
    /// What P3 was last checked on: it depends on the store and the kernels alone.
    checked: (Revision, u64),
    /// Answers that nobody has taken yet.
    pub replies: BTreeMap<CallId, Result<Reply, CallError>>,
}

/// The configuration of node number `n` (from 1).
pub fn config(n: u8) -> NodeConfig {
    NodeConfig {
        fleet: "test".parse().expect("a name"),
        node: format!("n{n}").parse().expect("a name"),
        node_labels: Labels::default(),
        underlay: Underlay {
            addresses: vec![[192, 0, 2, n].into()],
            network: "192.0.2.0/24".parse().expect("a network"),
            ifindex: 2,
            mtu_bytes: 1500,
        },
        pools: vec!["10.0.0.0/16".parse().expect("a pool")],
        block_prefix_v4: 24,
        block_prefix_v6: 112,
        tunnel_port: 8472,
        gossip_port: 7946,
        identity_labels: Vec::new(),
        incarnation: 1,
        machine_id: format!("machine-{n}"),
        boot_id: "boot".to_owned(),
        agent_version: "test".to_owned(),
        seed: [u64::from(n), 7],
        quarantine: Duration::from_secs(900),
        address_cooldown: Duration::from_secs(60),
        address_reserve: 0,
        audit_interval: Duration::from_secs(300),
        collect_interval: Duration::from_secs(10),
    }
}

/// A name of an endpoint.
pub fn name(text: &str) -> EndpointName {
    text.parse().expect("a name")
}

/// An endpoint as a caller asks for it.
pub fn spec(endpoint: &str, labels: &str) -> EndpointSpec {
    EndpointSpec {
        name: name(endpoint),
        labels: labels.parse().expect("labels"),
        attachment: Attachment::Netns {
            path: format!("/run/netns/{endpoint}").into(),
            interface: "eth0".to_owned(),
        },
        address: None,
    }
}

/// The address and identity of an endpoint that was to be added.
pub fn added(reply: Result<Reply, CallError>) -> (IpAddr, Identity) {
    match reply {
        Ok(Reply::EndpointAdded { address, identity, .. }) => (address, identity),
        other => panic!("not added: {other:?}"),
    }
}

impl Sim {
    /// `count` nodes that start at one moment beside an empty store.
    pub fn new(count: u8, seed: u64) -> Self {
        Self::with(seed, (1..=count).map(config).collect())
    }

    /// Nodes with these configurations.
    pub fn with(seed: u64, configs: Vec<NodeConfig>) -> Self {
        Self {
            store: MemState::new(StoreIdentity(1)),
            agents: configs.into_iter().map(Agent::new).collect(),
            now: Duration::ZERO,
            gossip: true,
            rng: fastrand::Rng::with_seed(seed),
            calls: 0,
            checked: Default::default(),
            replies: BTreeMap::new(),
        }
    }

    /// Where the store's keys lie.
    pub fn schema(&self) -> Schema {
        Schema::new(&"test".parse().expect("a name"))
    }

    /// Node `n` (from 1), which must be running.
    pub fn node(&self, n: usize) -> &Node {
        self.agents[n - 1].node.as_ref().expect("the agent runs")
    }

    /// Machine `n` (from 1).
    pub fn agent(&mut self, n: usize) -> &mut Agent {
        &mut self.agents[n - 1]
    }

    /// Calls a node's API; the answer comes to `replies`.
    pub fn call(&mut self, n: usize, call: Call) -> CallId {
        self.calls += 1;
        let id = CallId(self.calls);
        self.agents[n - 1].push(node_core::Event::Called(id, call));
        id
    }

    /// Calls and waits until the fleet is quiet.
    pub fn ask(&mut self, n: usize, call: Call) -> Result<Reply, CallError> {
        let id = self.call(n, call);
        self.settle();
        self.replies
            .remove(&id)
            .unwrap_or_else(|| panic!("no answer to {id:?}: {:#?}", self.node(n).status()))
    }

    /// Adds an endpoint to node `n` and waits until the fleet is quiet.
    pub fn add(&mut self, n: usize, endpoint: &str, labels: &str) -> Result<Reply, CallError> {
        self.ask(n, Call::EndpointAdd(spec(endpoint, labels)))
    }

    /// Runs until nothing is left to do at this moment.
    pub fn settle(&mut self) {
        for _ in 0..MAX_STEPS {
            if !self.step() {
                return;
            }
        }
        panic!("the fleet does not come to rest");
    }

    /// One action of one agent, drawn at random among those that have one.
    pub fn step(&mut self) -> bool {
        let busy: Vec<usize> = (0..self.agents.len())
            .filter(|index| self.agents[*index].has_work(&self.store, self.now))
            .collect();
        let Some(index) = self.rng.choice(&busy) else { return false };
        let draw = self.rng.u64(..);
        let told = self.agents[*index].act(&mut self.store, self.now, draw, &mut self.replies);
        if let Some(facts) = told
            && self.gossip
        {
            for other in (0..self.agents.len()).filter(|other| other != index) {
                self.agents[other].hear(facts.clone());
            }
        }
        let changed = (self.store.revision(), self.agents.iter().map(|agent| agent.kernel.steps().1).sum());
        if changed != self.checked {
            self.checked = changed;
            check::p3(self);
        }
        true
    }

    /// Lets time pass, waking agents and keeping leases as it goes.
    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while self.now < end {
            let next = self.agents.iter().filter_map(Agent::wake_at).filter(|at| *at > self.now).min();
            // Leases are kept at a third of the shortest that there is.
            let next = next.unwrap_or(end).min(self.now + Duration::from_secs(5)).min(end);
            self.store.advance(next - self.now);
            self.now = next;
            for agent in &mut self.agents {
                agent.tick(&mut self.store, self.now);
            }
            self.settle();
        }
    }

    /// Starts an agent again, on the kernel that it left behind.
    pub fn restart(&mut self, n: usize) {
        let now = self.now;
        self.agents[n - 1].restart(now);
    }
}
