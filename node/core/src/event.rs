//! What may happen to a node. Closed and serialisable: a log of events can be replayed.

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
        /// The former agent's last snapshot, if it can be read.
        snapshot: Option<Box<Snapshot>>,
        /// The state of endpoints that the former agent saved, as far as it can be read.
        endpoints: Vec<SavedEndpoint>,
    },
    /// The time of a `Command::WakeAt` has come. Waking at other times is harmless.
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
    /// The local API was called.
    Called(CallId, Call),
    /// The underlay changed.
    Underlay(Underlay),
    /// What these entries have in the network stack was removed or modified, or may have been. Changes by this node itself
    /// may be among them.
    ExternallyModified(BTreeSet<TableKey>),
    /// The results of probes; the error says in a few words what went wrong.
    Probed(Vec<(ProbeId, Result<(), String>)>),
}

/// A probe of a backend or node in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProbeId(pub u64);

/// An update of the watch.
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

/// An update of gossip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GossipUpdate {
    /// A node's facts, new or changed.
    Facts(Box<NodeFacts>),
    /// A node's liveness.
    Live {
        /// The node.
        node: NodeName,
        /// Whether it seems alive.
        liveness: Liveness,
    },
}

/// A call of the local API that changes something. What only reads is answered from `Node`'s accessors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Adds an endpoint; the same call again is answered like the first.
    EndpointAdd(EndpointSpec),
    /// Deletes an endpoint; it is no error if the endpoint does not exist.
    EndpointDelete(EndpointName),
    /// Drains an endpoint: as a backend it takes no new flows from now on. The same call again changes nothing.
    EndpointDrain(EndpointName),
    /// Removes another node's records: an operator's word that it will not come back.
    NodeRemove(NodeName),
    /// Releases a block of this node that no endpoint uses.
    CidrRelease(IpNetwork),
    /// Writes a service to the store; the same call again changes nothing.
    ServicePut {
        /// Its name.
        name: ServiceName,
        /// Its specification.
        spec: ServiceSpec,
        /// What the store must have before.
        expected: Expected,
    },
    /// Deletes a service from the store; it is no error if the service does not exist.
    ServiceDelete {
        /// Its name.
        name: ServiceName,
        /// What the store must have before.
        expected: Expected,
    },
    /// Reads the kernel now and compares; answers with what differed.
    Audit {
        /// Whether to repair the differences too.
        repair: bool,
    },
}

/// An endpoint to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Its name, unique on the node.
    pub name: EndpointName,
    /// Its labels.
    pub labels: Labels,
    /// How it is attached.
    pub attachment: Attachment,
    /// The address wanted, if any.
    pub address: Option<IpAddr>,
}
