//! What may happen to a node. Closed and serialisable: a log of events is a replay.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use datapath_plan::{Attachment, Observed, PlanOutcome, TableKey};
use identity::{EndpointName, Labels, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_claims::Expected;
use kvstore_schema::{KvEvent, KvOutcome, ListPage, Revision, service::ServiceSpec};
use node_facts::{Liveness, NodeFacts};
use serde::{Deserialize, Serialize};

use crate::{SavedEndpoint, Snapshot, Underlay};

/// The time of an event, as the shell saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now {
    /// Since the agent's start; never goes back. All deadlines are in it.
    pub monotonic: Duration,
    /// Since 1970, for humans and records only.
    pub wall: Duration,
}

/// A request to the store in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KvId(pub u64);

/// A call of the local API in flight; the shell chooses the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallId(pub u64);

/// Everything that may happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The first event, once.
    Started {
        /// What the former agent persisted last, if it can be read.
        snapshot: Option<Box<Snapshot>>,
        /// What it persisted of its endpoints, as far as it can be read.
        endpoints: Vec<SavedEndpoint>,
    },
    /// A time asked for by `Command::WakeAt` has come (or any other: waking too often is harmless).
    Woke,
    /// From the watch on the fleet's prefix.
    Kv(KvUpdate),
    /// The answer to a `Command::Kv`.
    KvAnswer(KvId, KvOutcome),
    /// From gossip.
    Gossip(GossipUpdate),
    /// The answer to a `Command::Observe`, or the reason why the kernel could not be read.
    Observed(Result<Observed, String>),
    /// The answer to a `Command::Apply`.
    Applied(PlanOutcome),
    /// Somebody called the local API.
    Called(CallId, Call),
    /// The underlay changed.
    Underlay(Underlay),
    /// Somebody took away or changed what these entries have in the network stack, or may have; what this node did
    /// itself may be among it.
    Disturbed(BTreeSet<TableKey>),
    /// What came of probes; the error is what went wrong, in a few words.
    Probed(Vec<(ProbeId, Result<(), String>)>),
}

/// A question to a backend or node in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProbeId(pub u64);

/// What the watch says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvUpdate {
    /// The whole prefix at one revision: at the start and after each break of the watch.
    Listed(ListPage),
    /// Changes, in order.
    Changed {
        /// The changes.
        events: Vec<KvEvent>,
        /// Everything up to here is known.
        revision: Revision,
    },
    /// The store does not answer; the shell goes on trying.
    Lost(String),
}

/// What gossip says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GossipUpdate {
    /// A node's facts, new or changed.
    Facts(Box<NodeFacts>),
    /// Whether a node seems alive.
    Live {
        /// The node.
        node: NodeName,
        /// Whether it does.
        liveness: Liveness,
    },
}

/// A call of the local API that changes something. What only reads is answered from `Node`'s accessors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Adds an endpoint; the same call again answers the same.
    EndpointAdd(EndpointSpec),
    /// Deletes an endpoint; one that is not there is no error.
    EndpointDelete(EndpointName),
    /// Has an endpoint take no new flows as a backend from now on; the same call again changes nothing.
    EndpointDrain(EndpointName),
    /// Removes another node's records: an operator's word that it will not come back.
    NodeRemove(NodeName),
    /// Gives back a block of this node that no endpoint uses.
    CidrRelease(IpNetwork),
    /// Writes a service into the store; the same call again changes nothing.
    ServicePut {
        /// Its name.
        name: ServiceName,
        /// How it is to be.
        spec: ServiceSpec,
        /// What must be there before.
        expected: Expected,
    },
    /// Deletes a service from the store; one that is not there is no error.
    ServiceDelete {
        /// Its name.
        name: ServiceName,
        /// What must be there before.
        expected: Expected,
    },
    /// Reads the kernel now and compares; answers with what differed.
    Audit {
        /// Whether to repair the differences too.
        repair: bool,
    },
}

/// An endpoint as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Its name, unique on the node.
    pub name: EndpointName,
    /// Its labels.
    pub labels: Labels,
    /// How it is attached.
    pub attachment: Attachment,
    /// The address wanted, if it matters.
    pub address: Option<IpAddr>,
}
