//! The records behind the keys: JSON with a version field `v`, readable in `etcdctl get`.
//!
//! Fields that a newer version added are kept when a record is rewritten; a version that we do not
//! know rejects that record alone.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use identity::{EndpointName, Identity, LabelDigest, Labels, NodeName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned, ser};

use crate::{
    Revision,
    service::{ServiceClaimRecord, ServiceRecord, ServiceSpec},
};

/// The record version that this code writes and the only one that it reads.
pub const RECORD_VERSION: u32 = 1;

/// The most bytes a record may have: below etcd's 1.5 MiB a request, far above any record of ours.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// The highest counter that a record may hold (incarnation, moves, generation): it can always be raised by one, and JSON
/// readers that use floating point hold it exactly. Milliseconds since 1970 get there in the year 287396.
pub const MAX_COUNTER: u64 = 1 << 53;

/// Why a value is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than [`MAX_RECORD_BYTES`].
    #[error("record of {0} bytes, at most {MAX_RECORD_BYTES} are read")]
    TooLong(usize),
    /// Written by a version of Warren that this one does not know.
    #[error("record version {0} is not known to this agent (it reads {RECORD_VERSION}): upgrade the agent")]
    Version(u32),
    /// No JSON, or not of the record's shape.
    #[error("record does not decode: {0}")]
    Malformed(String),
    /// Well-formed, but against a rule.
    #[error("record is not valid: {0}")]
    Invalid(String),
}

/// A record: its own fields beside `v`.
pub trait Record: Serialize + DeserializeOwned {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`RecordError::Invalid`].
    fn validate(&self) -> Result<(), RecordError> {
        Ok(())
    }

    /// The value's bytes.
    fn encode(&self) -> Arc<[u8]> {
        #[derive(Serialize)]
        struct Versioned<'a, R> {
            v: u32,
            #[serde(flatten)]
            record: &'a R,
        }
        serde_json::to_vec(&Versioned { v: RECORD_VERSION, record: self })
            .expect("records hold only maps with text keys, texts and numbers")
            .into()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// Says why this value is rejected; its neighbours are not concerned.
    fn decode(value: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        if value.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong(value.len()));
        }
        let malformed = |error: serde_json::Error| RecordError::Malformed(error.to_string());
        let Version { v } = serde_json::from_slice(value).map_err(malformed)?;
        if v != RECORD_VERSION {
            return Err(RecordError::Version(v));
        }
        let mut fields: serde_json::Value = serde_json::from_slice(value).map_err(malformed)?;
        if let Some(map) = fields.as_object_mut() {
            map.remove("v");
        }
        let record: Self = serde_json::from_value(fields).map_err(malformed)?;
        record.validate()?;
        Ok(record)
    }
}

/// A record's fields lie beside the unknown ones, which only self-describing formats can hold. Anywhere else (an
/// agent's log of events is bincode) a record is its JSON, as one text.
macro_rules! json_anywhere {
    ($($record:ident)+) => {$(
        impl Serialize for $record {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    return Self::serialize(self, serializer);
                }
                serializer.serialize_str(&serde_json::to_string(self).map_err(ser::Error::custom)?)
            }
        }

        impl<'de> Deserialize<'de> for $record {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    return Self::deserialize(deserializer);
                }
                serde_json::from_str(&String::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    )+};
}

json_anywhere! {
    FleetRecord NodeRecord AliveRecord CidrRecord
    IdentityLabelsRecord IdentityIdRecord IdentityRefRecord EndpointRecord
    ServiceRecord ServiceSpec ServiceClaimRecord MarkRecord
}

/// Fields of a newer version, kept as they are.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// A generation of the store. A store that was emptied, or replaced by an older copy, is founded anew by the first member
/// that recognises the loss: the number rises, and all members write again what they know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// 0 as the fleet was made; higher with each founding.
    pub number: u64,
    /// The store's revision at the founding: records up to here are of a former generation.
    pub founded_on: Revision,
    /// Members still write again what they knew before: nothing free may be claimed.
    pub restoring: bool,
}

/// When a claim was made. Comparable across the generations of a store, whose revisions start again: the later claim has
/// the higher epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimEpoch {
    /// The number of the store's generation.
    pub life: u64,
    /// The create revision that the claim's record had in that generation.
    pub revision: Revision,
}

/// `fleet`: what all nodes share. Created once, by the first node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct FleetRecord {
    /// Random, 128 bits in hexadecimal: tells this fleet from a former one of the same name.
    pub fleet_id: String,
    /// Where pod CIDRs come from; they do not overlap.
    pub pools: Vec<IpNetwork>,
    /// Where the virtual IPs of services come from. They overlap neither one another nor `pools`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_pools: Vec<IpNetwork>,
    /// The prefix length of one claim in an IPv4 pool.
    pub block_prefix_v4: u8,
    /// The prefix length of one claim in an IPv6 pool.
    pub block_prefix_v6: u8,
    /// The tunnel's UDP port.
    pub tunnel_port: u16,
    /// The generation of the store.
    #[serde(default)]
    pub life: Life,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `mark`: random, and replaced a while after other records have changed. A store that does not name the last mark that a
/// node has seen is not the store that the node saw, whatever the store's revision is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct MarkRecord {
    /// 128 random bits in hexadecimal.
    pub mark: String,
    /// The former marks, the latest first; at most [`MarkRecord::MAX_BEFORE`].
    pub before: Vec<FormerMark>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A mark that the store had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerMark {
    /// The mark.
    pub mark: String,
    /// The modify revision of the mark's record.
    pub revision: Revision,
}

impl MarkRecord {
    /// How many former marks a record names: the last minutes of a fleet that always changes. A node that was away for
    /// longer cannot tell a copy by its mark.
    pub const MAX_BEFORE: usize = 16;
}

/// `nodes/<node>`: written by the node, removed by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct NodeRecord {
    /// The addresses that the node's tunnel packets come from and go to.
    pub underlay: Vec<IpAddr>,
    /// How often the agent has changed the underlay addresses since its start; gossip with a higher count is newer.
    #[serde(default)]
    pub moves: u64,
    /// How packets get to other nodes: `tunnel` or `native`. Nodes of different modes do not reach each other's endpoints.
    /// `None`: not known.
    #[serde(default)]
    pub datapath_mode: Option<String>,
    /// The node's claims, as a convenience for readers: the truth is under `cidrs/`.
    pub cidrs: Vec<IpNetwork>,
    /// The node's own address in the pod network: the first of its first CIDR.
    pub gateway: Option<IpAddr>,
    /// UDP port of its gossip on the first underlay address.
    pub gossip_port: u16,
    /// Labels of the node.
    #[serde(default)]
    pub labels: Labels,
    /// The machine's boot id.
    pub boot_id: String,
    /// The machine's id: tells a restarted node from a second machine of the same name.
    pub machine_id: String,
    /// Start time of the agent in ms since the epoch; rises with each start.
    pub incarnation: u64,
    /// The agent's version.
    pub agent_version: String,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `alive/<node>`: on a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct AliveRecord {
    /// The agent that is alive.
    pub incarnation: u64,
    /// The machine that it runs on.
    pub machine_id: String,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The state of a claim or number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimState {
    /// In use.
    Live,
    /// Given back, and not free before its quarantine ends.
    Quarantined,
}

/// `cidrs/<cidr>`: who owns a block. Its epoch is the key's create revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct CidrRecord {
    /// The owner, or the last one when quarantined.
    pub node: NodeName,
    /// Live or quarantined.
    pub state: ClaimState,
    /// Distinguishes this claim from any other attempt: machine id, incarnation and a counter. An
    /// ambiguous outcome is settled by reading it back.
    pub token: String,
    /// When the block was claimed, if that was in a former generation of the store; else the create revision tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<ClaimEpoch>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `identities/labels/<digest>`: from a label set to its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct IdentityLabelsRecord {
    /// The number.
    pub id: Identity,
    /// The labels.
    pub labels: Labels,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `identities/id/<id>`: from a number to its label set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct IdentityIdRecord {
    /// The labels.
    pub labels: Labels,
    /// Live or quarantined.
    pub state: ClaimState,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `identities/refs/<id>/<node>`: a node uses a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct IdentityRefRecord {
    /// The agent that took the reference.
    pub incarnation: u64,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `endpoints/<node>/<ip>`: one endpoint, written by its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct EndpointRecord {
    /// Its name on the node.
    pub name: EndpointName,
    /// Its identity.
    pub identity: Identity,
    /// The digest of the labels that count.
    pub labels_digest: LabelDigest,
    /// All its labels, those that do not count for the identity too.
    pub labels: Labels,
    /// The endpoint is draining: as a backend it takes no new flows.
    #[serde(default, skip_serializing_if = "is_false")]
    pub terminating: bool,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// For fields that most records do not have.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

fn check_pools(record: &FleetRecord) -> Result<(), String> {
    if record.pools.is_empty() {
        return Err("no pool".to_owned());
    }
    for pool in &record.pools {
        let (block, longest) =
            if pool.is_ipv4() { (record.block_prefix_v4, 30) } else { (record.block_prefix_v6, 126) };
        if block < pool.prefix() || block > longest {
            return Err(format!(
                "blocks of /{block} do not fit pool {pool}: use /{} to /{longest}",
                pool.prefix()
            ));
        }
    }
    let all: Vec<&IpNetwork> = record.pools.iter().chain(&record.service_pools).collect();
    for (index, pool) in all.iter().enumerate() {
        if pool.ip() != pool.network() {
            return Err(format!("pool {pool} has host bits set; write {}/{}", pool.network(), pool.prefix()));
        }
        for other in &all[index + 1..] {
            if pool.contains(other.network()) || other.contains(pool.network()) {
                return Err(format!("pools {pool} and {other} overlap"));
            }
        }
    }
    Ok(())
}

fn check_counter(name: &str, value: u64) -> Result<(), RecordError> {
    if value > MAX_COUNTER {
        return Err(RecordError::Invalid(format!("{name} {value} is above {MAX_COUNTER}")));
    }
    Ok(())
}

impl Record for FleetRecord {
    fn validate(&self) -> Result<(), RecordError> {
        check_counter("life", self.life.number)?;
        if self.fleet_id.is_empty() {
            return Err(RecordError::Invalid("empty fleet id".to_owned()));
        }
        if self.tunnel_port == 0 {
            return Err(RecordError::Invalid("tunnel port 0".to_owned()));
        }
        check_pools(self).map_err(RecordError::Invalid)
    }
}
impl Record for NodeRecord {
    fn validate(&self) -> Result<(), RecordError> {
        if self.underlay.is_empty() {
            return Err(RecordError::Invalid("no underlay address".to_owned()));
        }
        check_counter("moves", self.moves)?;
        check_counter("incarnation", self.incarnation)
    }
}
impl Record for AliveRecord {
    fn validate(&self) -> Result<(), RecordError> {
        check_counter("incarnation", self.incarnation)
    }
}
impl Record for MarkRecord {
    fn validate(&self) -> Result<(), RecordError> {
        if self.before.len() > Self::MAX_BEFORE {
            return Err(RecordError::Invalid(format!("names {} former marks", self.before.len())));
        }
        Ok(())
    }
}
impl Record for CidrRecord {
    fn validate(&self) -> Result<(), RecordError> {
        check_counter("since.life", self.since.map_or(0, |since| since.life))
    }
}
impl Record for IdentityLabelsRecord {
    fn validate(&self) -> Result<(), RecordError> {
        if !self.id.is_fleet() {
            return Err(RecordError::Invalid(format!(
                "identity {} is not one that the fleet gives out",
                self.id
            )));
        }
        Ok(())
    }
}
impl Record for IdentityIdRecord {}
impl Record for IdentityRefRecord {
    fn validate(&self) -> Result<(), RecordError> {
        check_counter("incarnation", self.incarnation)
    }
}
impl Record for EndpointRecord {
    fn validate(&self) -> Result<(), RecordError> {
        if !self.identity.is_fleet() {
            return Err(RecordError::Invalid(format!(
                "identity {} is not one that the fleet gives out",
                self.identity
            )));
        }
        Ok(())
    }
}
