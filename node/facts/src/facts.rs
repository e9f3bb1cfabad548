//! The facts themselves, and the rules that their types cannot hold.

use std::net::IpAddr;

use identity::{EndpointName, Identity, LabelDigest, Labels, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// The most underlay addresses of a node: a few uplinks in both families.
pub const MAX_UNDERLAY: usize = 16;
/// The most pod CIDRs of a node. With about 60 bytes each they stay far below one gossip value.
pub const MAX_CIDRS: usize = 256;
/// The longest reason of a degraded node, in bytes.
pub const MAX_REASON_BYTES: usize = 256;
/// The longest fleet id, in bytes (it is 32 hexadecimal digits; room for other forms).
pub const MAX_FLEET_ID_BYTES: usize = 64;

/// The most backends that a node tells of as not well: with the longest names they fill nine tenths of one gossip value.
pub const MAX_UNWELL: usize = 320;
/// The longest reason why a backend is not well, in bytes.
pub const MAX_WHY_BYTES: usize = 32;

/// Everything a node tells of itself. One per node, owned by it, replaced as a whole; lives as long as
/// gossip remembers the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The fleet's random id; empty while the node has not yet learnt it from etcd.
    pub fleet_id: String,
    /// Who says so.
    pub node: NodeName,
    /// Start time of the agent in ms since the epoch; rises with each start.
    pub incarnation: u64,
    /// Where its tunnel packets come from and go to; the first one of a family is preferred.
    pub underlay: Vec<IpAddr>,
    /// How often its agent has changed them since its start: what says more is newer.
    pub moves: u64,
    /// Its own address in the pod network.
    pub gateway: Option<IpAddr>,
    /// The pod CIDRs that it claims.
    pub cidrs: Vec<CidrFact>,
    /// The generation of desired state that its kernel has.
    pub applied_generation: u64,
    /// How it feels.
    pub health: NodeHealth,
    /// The life of the store that `recorded_revision` is one of: revisions begin again with each.
    #[serde(default)]
    pub recorded_life: u64,
    /// At this revision of the store, what the node has changed and does not tell as `pending` is in its records:
    /// who has not seen as much of the store yet goes on with what was told before.
    pub recorded_revision: i64,
    /// It does not hear the store now: all that it knows of it is of `recorded_revision` and before.
    #[serde(default)]
    pub cut_off: bool,
    /// Endpoint changes that etcd has not confirmed yet, in the order of `sequence`. A confirmed one
    /// leaves, so that this stays small whatever the fleet's size; but while a peer is cut off, the newest of those
    /// that it cannot have seen are told behind the others.
    #[serde(default)]
    pub pending: Vec<PendingEndpoint>,
    /// Backends of services that it has checked and found not to be well: its own endpoints, and what it was chosen to
    /// check outside the fleet. What is well is told by nobody.
    #[serde(default)]
    pub unwell: Vec<Unwell>,
}

/// One backend that is not well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unwell {
    /// The service whose check says so.
    pub service: ServiceName,
    /// The backend.
    pub address: IpAddr,
    /// The port that was asked.
    pub port: u16,
    /// What it answered, in words; at most [`MAX_WHY_BYTES`].
    pub why: String,
}

impl Unwell {
    /// A reason that fits: cut, and without what takes several bytes in the gossip value.
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
    /// They come.
    Alive,
    /// None for some rounds: time to ask.
    Silent,
    /// None for longer than chance explains.
    Dead,
}

/// A pod CIDR with its claim's epoch: of two facts on one CIDR the higher life, then the higher epoch wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CidrFact {
    /// The CIDR, without host bits.
    pub cidr: IpNetwork,
    /// In which life of the store it was claimed: revisions begin again with each.
    #[serde(default)]
    pub life: u64,
    /// The create revision that its claim had in etcd then.
    pub epoch: i64,
}

/// A node's own opinion of its health.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeHealth {
    /// Nothing to complain of.
    #[default]
    Ok,
    /// It works, with something missing.
    Degraded {
        /// What is missing; at most [`MAX_REASON_BYTES`].
        reason: String,
    },
}

impl NodeHealth {
    /// A degraded node; a long reason is cut so that it never keeps facts from being told.
    pub fn degraded(reason: &str) -> Self {
        Self::Degraded { reason: reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned() }
    }
}

/// What happened to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PendingOp {
    /// It is there, with these labels.
    Added,
    /// It is gone.
    Removed,
}

/// One endpoint change that etcd has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEndpoint {
    /// Its address, inside one of the node's CIDRs.
    pub ip: IpAddr,
    /// Its identity: one of the fleet's, or [`Identity::INIT`] while its labels have no number.
    pub identity: Identity,
    /// The digest of the labels that count.
    pub labels_digest: LabelDigest,
    /// All its labels.
    pub labels: Labels,
    /// Its name on the node.
    pub name: EndpointName,
    /// It is on its way out: as a backend it takes no new flows.
    #[serde(default)]
    pub terminating: bool,
    /// Added or removed.
    pub op: PendingOp,
    /// Counts the node's endpoint changes: a later change of one address has a higher number. 0: etcd has it.
    pub sequence: u64,
    /// The revision of the store, in the life of `recorded_life`, that has it: who has seen as much knows better.
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
    /// The first rule broken.
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
    /// Checks one entry against the node that tells it: no node may speak of addresses outside its CIDRs.
    ///
    /// # Errors
    /// The first rule broken; the node's other entries are not concerned.
    pub fn validate(&self, node: &NodeFacts) -> Result<(), InvalidFacts> {
        ensure(node.cidrs.iter().any(|fact| fact.cidr.contains(self.ip)), || {
            format!("{} is outside the CIDRs of {}", self.ip, node.node)
        })?;
        ensure(self.identity.is_fleet() || self.identity == Identity::INIT, || {
            format!("identity {} cannot be an endpoint's", self.identity)
        })
    }
}
