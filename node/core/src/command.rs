//! What a node wants done. Carried out by one `match` in the agent.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use datapath_plan::{EndpointId, Plan};
use identity::{EndpointName, Identity};
use ipnetwork::IpNetwork;
use kvstore_claims::ServiceOutcome;
use kvstore_schema::{
    Condition, Key, KvRequest, Revision,
    service::{self as schema, NodePortGiven},
};
use node_facts::NodeFacts;
use serde::{Deserialize, Serialize};

use crate::{CallId, KvId, ProbeId, SavedEndpoint, Snapshot};

/// Everything that a node may want done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Carry out a plan; answer with `Event::Applied`. One at a time.
    Apply(Plan),
    /// Read the kernel; answer with `Event::Observed`. Never while a plan is being carried out.
    Observe,
    /// Ask the store; answer with `Event::KvAnswer`.
    Kv(KvId, KvRequest),
    /// Keep this key on a lease for as long as the agent lives, and write it again when the lease is lost.
    KeepAlive {
        /// The key.
        key: Key,
        /// Its value.
        value: Arc<[u8]>,
        /// The lease's time to live.
        ttl: Duration,
        /// Written only while this holds.
        fence: Condition,
    },
    /// Gossip these facts of ours from now on.
    Publish(NodeFacts),
    /// Gossip with this address too: that of a node which etcd knows.
    AddPeer(SocketAddr),
    /// Stop gossiping with this address: its node has another one now.
    ForgetPeer(SocketAddr),
    /// Save this snapshot for the next start; only the newest counts.
    Persist(Box<Snapshot>),
    /// Save this state of an endpoint of this node for the next start, or, with `None`, delete it. It must outlive the
    /// agent, not the machine.
    PersistEndpoint(EndpointId, Option<Box<SavedEndpoint>>),
    /// Answer a call, after all endpoint state of earlier commands has been saved.
    Reply(CallId, Result<Reply, CallError>),
    /// Send these probes; answer with `Event::Probed`, in any order and grouping.
    Probe(Vec<Probe>),
    /// Send `Event::Woke` at this monotonic time. Replaces the time asked for before.
    WakeAt(Duration),
    /// The node cannot go on as configured (wrong fleet settings, another machine of its name): say so to
    /// the operator and keep what the kernel has. The shell does not exit.
    Halt(String),
}

/// One probe of a backend or node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its number.
    pub id: ProbeId,
    /// What is probed.
    pub target: ProbeTarget,
    /// Without an answer within this time the probe fails.
    pub timeout: Duration,
}

/// What is probed, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeTarget {
    /// A backend of a service, from the node's own stack.
    Backend {
        /// Where.
        at: SocketAddr,
        /// What.
        probe: schema::Probe,
    },
    /// Another node, at its own address in the pod network: ICMP echo requests until one is answered.
    Node(std::net::IpAddr),
}

/// The result of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The endpoint is attached and answers.
    EndpointAdded {
        /// Its name.
        name: EndpointName,
        /// Its number.
        id: EndpointId,
        /// Its address.
        address: std::net::IpAddr,
        /// Its identity.
        identity: Identity,
        /// Whether it was there before.
        existed: bool,
    },
    /// The endpoint is gone.
    EndpointDeleted {
        /// Whether it had been there.
        existed: bool,
    },
    /// The endpoint takes no new flows as a backend.
    EndpointDrained {
        /// Whether it took none before.
        already: bool,
    },
    /// The node's records are gone.
    NodeRemoved,
    /// The block is given back.
    CidrReleased(IpNetwork),
    /// The service is in the store.
    ServiceWritten {
        /// What was done.
        outcome: ServiceOutcome,
        /// Its address.
        virtual_ip: std::net::IpAddr,
        /// The node ports of its ports.
        node_ports: Vec<NodePortGiven>,
        /// Its modify revision.
        revision: Revision,
    },
    /// The service is gone from the store.
    ServiceDeleted {
        /// Whether it had been there.
        existed: bool,
    },
    /// The kernel was read, compared and repaired.
    Audited {
        /// What differed, one line each, sorted; empty when nothing did.
        differences: Vec<String>,
    },
}

/// Which kind of error a call met: decides the status of the HTTP answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallErrorKind {
    /// The request makes no sense as it is.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// Something else is in the way.
    Conflict,
    /// Something is used up.
    Exhausted,
    /// etcd or the kernel does not answer now; trying again later may help.
    Unavailable,
}

/// Why a call failed, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    /// What kind.
    pub kind: CallErrorKind,
    /// For the person who called.
    pub text: String,
}
