//! The node: one value, one way in (`handle`), and accessors that only read.

use std::net::IpAddr;

use datapath_plan::Tables;
use identity::EndpointName;

use crate::{
    Command, Counters, EndpointView, Event, IdentityView, IpcacheView, NodeConfig, NodeView, Now,
    RejectedView, StatusView, StoreView,
};

/// Everything that one agent knows and wants. One per agent, owned by the task that runs it.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    started_at: Now,
    counters: Counters,
    wanted: Tables,
}

impl Node {
    /// A node that has seen nothing yet; the first event must be `Started`.
    pub fn new(config: NodeConfig) -> Self {
        Self { config, started_at: Now::default(), counters: Counters::default(), wanted: Tables::default() }
    }

    /// Takes one event in and says what is to be done about it, in this order.
    ///
    /// `now` never goes back. Commands are not repeated: the shell carries out each one exactly once.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Command> {
        self.counters.events += 1;
        match event {
            Event::Started => {
                self.started_at = now;
                vec![Command::Observe]
            }
            _ => Vec::new(),
        }
    }

    /// The node at a glance.
    pub fn status(&self) -> StatusView {
        StatusView {
            node: self.config.node.clone(),
            fleet: self.config.fleet.clone(),
            fleet_id: None,
            agent_version: self.config.agent_version.clone(),
            incarnation: self.config.incarnation,
            started_at: self.started_at.wall,
            halted: None,
            warnings: Vec::new(),
            store: StoreView::default(),
            underlay: self.config.underlay.clone(),
            pod_mtu_bytes: 0,
            gateway: None,
            cidrs: Vec::new(),
            plan: Default::default(),
            audit: None,
            last_error: None,
            counts: Default::default(),
            counters: self.counters.clone(),
        }
    }

    /// This node's endpoints, by name.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        Vec::new()
    }

    /// One endpoint of this node.
    pub fn endpoint(&self, _name: &EndpointName) -> Option<EndpointView> {
        None
    }

    /// The fleet's nodes, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        Vec::new()
    }

    /// Reserved and fleet identities, by number.
    pub fn identities(&self) -> Vec<IdentityView> {
        Vec::new()
    }

    /// The ipcache as wanted, by prefix: O(all), for listings.
    pub fn ipcache(&self) -> Vec<IpcacheView> {
        Vec::new()
    }

    /// The ipcache entry that decides about one address: O(log n), for decoding events.
    pub fn lookup(&self, _address: IpAddr) -> Option<IpcacheView> {
        None
    }

    /// Everything that the kernel should hold.
    pub fn wanted(&self) -> &Tables {
        &self.wanted
    }

    /// Records and facts that were not accepted, by key.
    pub fn rejected(&self) -> Vec<RejectedView> {
        Vec::new()
    }

    /// Counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
