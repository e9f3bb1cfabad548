//! The facts, and the rules that their types cannot express.

use std::net::IpAddr;

use identity::{EndpointName, Identity, LabelDigest, Labels, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Maximum number of underlay addresses of a node: a few uplinks in both families.
pub const MAX_UNDERLAY: usize = 16;
/// Maximum number of pod CIDRs of a node. With about 60 bytes each they stay far below one gossip value.
pub const MAX_CIDRS: usize = 256;
/// Maximum length of the reason of a degraded node, in bytes.
pub const MAX_REASON_BYTES: usize = 256;
/// Maximum length of a fleet id, in bytes (it is 32 hexadecimal digits; room for other forms).
pub const MAX_FLEET_ID_BYTES: usize = 64;

/// Maximum number of unhealthy backends of a node: with the longest names they fill nine tenths of one gossip value.
pub const MAX_UNWELL: usize = 320;
/// Maximum length of the reason why a backend is unhealthy, in bytes.
pub const MAX_WHY_BYTES: usize = 32;

/// Everything that a node publishes about itself. One per node, owned by it, replaced as a whole; lives as long as
/// gossip remembers the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The fleet's random id; empty while the node has not learnt it from etcd.
    pub fleet_id: String,
    /// The node that publishes the facts.
    pub node: NodeName,
    /// Start time of the agent in ms since the epoch; rises with each start.
    pub incarnation: u64,
    /// The node's addresses for tunnel packets; the first one of a family is preferred.
    pub underlay: Vec<IpAddr>,
    /// How often the agent has changed them since its start: the higher number is newer.
    pub moves: u64,
    /// The node's own address in the pod network.
    pub gateway: Option<IpAddr>,
    /// The pod CIDRs that the node has claimed.
    pub cidrs: Vec<CidrFact>,
    /// The generation of the desired state in the node's kernel.
    pub applied_generation: u64,
    /// The node's health.
    pub health: NodeHealth,
    /// The life (generation) of the store to which `recorded_revision` belongs: revisions begin again with each.
    #[serde(default)]
    pub recorded_life: u64,
    /// At this revision of the store, the node's records contain all its changes that are not in `pending`: a reader
    /// that has not seen this revision keeps the facts received before.
    pub recorded_revision: i64,
    /// The node does not hear the store now: everything that it knows of the store is of `recorded_revision` or
    /// before.
    #[serde(default)]
    pub cut_off: bool,
    /// Endpoint changes that etcd has not confirmed yet, in the order of `sequence`. A confirmed one is removed, so
    /// that this stays small whatever the fleet's size; but while a peer is cut off from the store, the newest of
    /// those that it cannot have seen follow the others.
    #[serde(default)]
    pub pending: Vec<PendingEndpoint>,
    /// Unhealthy backends of services, as checked by this node: its own endpoints, and the backends outside the fleet
    /// that it was chosen to check. Healthy backends are not listed.
    #[serde(default)]
    pub unwell: Vec<Unwell>,
}

/// One unhealthy backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unwell {
    /// The service whose health check failed.
    pub service: ServiceName,
    /// The backend.
    pub address: IpAddr,
    /// The checked port.
    pub port: u16,
    /// The result of the check in words; at most [`MAX_WHY_BYTES`].
    pub why: String,
}

impl Unwell {
    /// A reason that fits: truncated, and without characters that take several bytes in the gossip value.
    pub fn reason(text: &str) -> String {
        let text = &text[..text.floor_char_boundary(MAX_WHY_BYTES)];
        let plain = |c: char| if c.is_control() || matches!(c, '"' | '\\') { '?' } else { c };
        text.chars().map(plain).collect()
    }
}

/// Whether a node seems alive, by its heartbeats: a suspicion, never a reason to delete anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Liveness {
    /// Heartbeats arrive.
    Alive,
    /// No heartbeat for some rounds: the agent must probe the node.
    Silent,
    /// No heartbeat for longer than chance explains.
    Dead,
}

/// A pod CIDR with its claim's epoch: of two facts on one CIDR the higher life wins, then the higher epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CidrFact {
    /// The CIDR, without host bits.
    pub cidr: IpNetwork,
    /// The life (generation) of the store in which it was claimed: revisions begin again with each.
    #[serde(default)]
    pub life: u64,
    /// The create revision of its claim in etcd.
    pub epoch: i64,
}

/// A node's own view of its health.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeHealth {
    /// Everything works.
    #[default]
    Ok,
    /// The node works, with something missing.
    Degraded {
        /// What is missing; at most [`MAX_REASON_BYTES`].
        reason: String,
    },
}

impl NodeHealth {
    /// A degraded node; a long reason is truncated, so that it never prevents publication.
    pub fn degraded(reason: &str) -> Self {
        Self::Degraded { reason: reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned() }
    }
}

/// The kind of an endpoint change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PendingOp {
    /// The endpoint exists, with these labels.
    Added,
    /// The endpoint is deleted.
    Removed,
}

/// One endpoint change that etcd has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEndpoint {
    /// The endpoint's address, inside one of the node's CIDRs.
    pub ip: IpAddr,
    /// The endpoint's identity: one of the fleet's, or [`Identity::INIT`] while its labels have no identity.
    pub identity: Identity,
    /// The digest of the identity-relevant labels.
    pub labels_digest: LabelDigest,
    /// All labels of the endpoint.
    pub labels: Labels,
    /// The endpoint's name on the node.
    pub name: EndpointName,
    /// The endpoint is being drained: as a backend it takes no new flows.
    #[serde(default)]
    pub terminating: bool,
    /// Added or removed.
    pub op: PendingOp,
    /// Counts the node's endpoint changes: a later change of one address has a higher number. 0: etcd has it.
    pub sequence: u64,
    /// The revision of the store, in the life of `recorded_life`, that contains the change: a reader that has seen
    /// this revision ignores the entry.
    #[serde(default)]
    pub recorded: Option<i64>,
}

/// Well-formed facts that break a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidFacts(pub(crate) String);

fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), InvalidFacts> {
    if holds { Ok(()) } else { Err(InvalidFacts(complaint())) }
}

impl NodeFacts {
    /// Checks everything but `pending`, whose entries are checked one by one.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), InvalidFacts> {
        ensure(self.fleet_id.len() <= MAX_FLEET_ID_BYTES, || {
            format!("fleet id of {} bytes, at most {MAX_FLEET_ID_BYTES} are allowed", self.fleet_id.len())
        })?;
        ensure(self.underlay.len() <= MAX_UNDERLAY, || {
            format!("{} underlay addresses, at most {MAX_UNDERLAY} are allowed", self.underlay.len())
        })?;
        ensure(self.cidrs.len() <= MAX_CIDRS, || {
            format!("{} pod CIDRs, at most {MAX_CIDRS} are allowed", self.cidrs.len())
        })?;
        for address in self.underlay.iter().chain(&self.gateway) {
            ensure(!address.is_unspecified() && !address.is_multicast(), || {
                format!("{address} is not the address of one node")
            })?;
        }
        for CidrFact { cidr, epoch, .. } in &self.cidrs {
            ensure(cidr.ip() == cidr.network(), || format!("CIDR {cidr} has host bits set"))?;
            ensure(cidr.prefix() > 0, || format!("CIDR {cidr} is the whole address space"))?;
            ensure(*epoch > 0, || format!("CIDR {cidr} has epoch {epoch}, which is no etcd revision"))?;
        }
        ensure(self.unwell.len() <= MAX_UNWELL, || {
            format!("{} backends that are not well, at most {MAX_UNWELL} are told", self.unwell.len())
        })?;
        for Unwell { service, why, .. } in &self.unwell {
            ensure(*why == Unwell::reason(why), || {
                format!(
                    "a reason on service {service} has more than {MAX_WHY_BYTES} bytes, or characters that do not belong there"
                )
            })?;
        }
        if let NodeHealth::Degraded { reason } = &self.health {
            ensure(reason.len() <= MAX_REASON_BYTES, || {
                format!("health reason of {} bytes, at most {MAX_REASON_BYTES} are allowed", reason.len())
            })?;
        }
        Ok(())
    }
}

impl PendingEndpoint {
    /// Checks one entry against its node: no node may publish addresses outside its CIDRs.
    ///
    /// # Errors
    /// The first broken rule; the node's other entries are not affected.
    pub fn validate(&self, node: &NodeFacts) -> Result<(), InvalidFacts> {
        ensure(node.cidrs.iter().any(|fact| fact.cidr.contains(self.ip)), || {
            format!("{} is outside the CIDRs of {}", self.ip, node.node)
        })?;
        ensure(self.identity.is_fleet() || self.identity == Identity::INIT, || {
            format!("identity {} cannot be an endpoint's", self.identity)
        })
    }
}
