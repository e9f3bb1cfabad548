//! The encoding of facts in gossip: a few ASCII keys with versioned JSON values.
//!
//! Few keys, because gossip's cost grows with nodes times keys; each value well below 65,400 bytes, because chitchat
//! accepts a longer one, never sends it, and silently blocks every later key of the node.
//!
//! Facts are one value (`facts`); pending endpoints are split over `pending/<n>`, and unhealthy backends are in
//! `unwell`. A reader may see some keys newer than others, so every chunk carries the digest of the whole set that it
//! belongs to, and `facts`, written last, names that digest: chunks of another set mean "not complete yet", never "an
//! endpoint has left" or "all backends are healthy".

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    InvalidFacts, NodeFacts, PendingEndpoint,
    unwell::{UNWELL_KEY, UnwellValue, pack, unpack},
};

/// The version that this code writes, and the only one that it reads.
pub const FACTS_VERSION: u32 = 1;
/// The key of everything but pending endpoints.
pub const FACTS_KEY: &str = "facts";
/// Maximum bytes of a value: a key and a value of more than about 65,400 bytes never leave the node (FACTS).
pub const MAX_VALUE_BYTES: usize = 60_000;
/// Maximum bytes of entries in one chunk, so that two chunks fit one datagram even uncompressed.
pub const PENDING_CHUNK_BYTES: usize = 32 * 1024;
/// Maximum number of chunks: at about 300 bytes an entry some 1,700 unconfirmed changes, six times a full /24.
pub const MAX_PENDING_CHUNKS: usize = 16;

/// The key of a chunk of pending endpoints.
pub fn pending_key(chunk: usize) -> String {
    format!("pending/{chunk}")
}

/// Why facts cannot be encoded, or a node's values cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// The node has published nothing yet.
    #[error("no {FACTS_KEY} value")]
    Absent,
    /// Some values have arrived and others not yet; the facts read before stay valid.
    #[error("value {0} has not arrived yet")]
    Incomplete(String),
    /// Written by a version of Warren that this one does not know.
    #[error("facts version {0} is not known to this agent (it reads {FACTS_VERSION}): upgrade the agent")]
    Version(u32),
    /// Longer than [`MAX_VALUE_BYTES`]; it would block the node's later values.
    #[error("value {key} of {bytes} bytes, at most {MAX_VALUE_BYTES} are allowed")]
    TooLong {
        /// The key.
        key: String,
        /// The value's length.
        bytes: usize,
    },
    /// More than [`MAX_PENDING_CHUNKS`].
    #[error("{0} chunks of pending endpoints, at most {MAX_PENDING_CHUNKS} are allowed")]
    TooManyPending(usize),
    /// One pending endpoint is longer than a chunk.
    #[error("pending endpoint {ip} takes {bytes} bytes, at most {PENDING_CHUNK_BYTES} are allowed")]
    EntryTooLong {
        /// Its address.
        ip: std::net::IpAddr,
        /// Its length.
        bytes: usize,
    },
    /// Not JSON, or not of the facts' shape.
    #[error("value {key} does not decode: {reason}")]
    Malformed {
        /// The key.
        key: String,
        /// The parser's error.
        reason: String,
    },
    /// Well-formed, but against a rule.
    #[error("facts are not valid: {0}")]
    Invalid(#[from] InvalidFacts),
}

/// A value, or an entry of one, that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedValue {
    /// The key that holds it.
    pub key: String,
    /// What is invalid.
    pub reason: String,
}

/// Facts, and what had to be left out of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The valid facts.
    pub facts: NodeFacts,
    /// The rejected parts.
    pub rejected: Vec<RejectedValue>,
}

#[derive(Serialize)]
struct FactsValue<'a> {
    v: u32,
    pending_set: &'a str,
    pending_chunks: usize,
    /// Empty: all backends are healthy.
    unwell_set: &'a str,
    #[serde(flatten)]
    facts: &'a NodeFacts,
}

#[derive(Deserialize)]
struct FactsHead {
    v: u32,
    pending_set: String,
    pending_chunks: usize,
    #[serde(default)]
    unwell_set: String,
}

#[derive(Deserialize)]
struct ChunkValue {
    v: u32,
    set: String,
    entries: Vec<serde_json::Value>,
}

/// Encodes facts as keys and values, in the order in which they must be published: `facts` last.
///
/// Pure and stable: equal facts give equal values, so unchanged ones need not be sent again.
///
/// # Errors
/// When the facts break a rule or a limit; nothing of them must be published then.
pub fn encode(facts: &NodeFacts) -> Result<Vec<(String, String)>, FactsError> {
    facts.validate()?;
    let mut hash = Sha256::new();
    let mut chunks: Vec<String> = Vec::new();
    for entry in &facts.pending {
        entry.validate(facts)?;
        let text = to_json(entry);
        if text.len() > PENDING_CHUNK_BYTES {
            return Err(FactsError::EntryTooLong { ip: entry.ip, bytes: text.len() });
        }
        hash.update(&text);
        match chunks.last_mut() {
            Some(chunk) if chunk.len() + 1 + text.len() <= PENDING_CHUNK_BYTES => {
                chunk.push(',');
                chunk.push_str(&text);
            }
            _ => chunks.push(text),
        }
    }
    if chunks.len() > MAX_PENDING_CHUNKS {
        return Err(FactsError::TooManyPending(chunks.len()));
    }
    let set = short_digest(hash);
    let pending_chunks = chunks.len();
    let mut values: Vec<(String, String)> = chunks
        .into_iter()
        .enumerate()
        .map(|(index, entries)| {
            (pending_key(index), format!(r#"{{"v":{FACTS_VERSION},"set":"{set}","entries":[{entries}]}}"#))
        })
        .collect();
    let unwell = (!facts.unwell.is_empty())
        .then(|| pack(&facts.unwell, |text| short_digest(Sha256::new_with_prefix(text))));
    values.extend(unwell.as_ref().map(|unwell| (UNWELL_KEY.to_owned(), to_json(unwell))));
    let unwell_set = unwell.as_ref().map(|unwell| &unwell.set[..]).unwrap_or_default();
    let head = NodeFacts { pending: Vec::new(), unwell: Vec::new(), ..facts.clone() };
    let value = to_json(&FactsValue {
        v: FACTS_VERSION,
        pending_set: &set,
        pending_chunks,
        unwell_set,
        facts: &head,
    });
    values.push((FACTS_KEY.to_owned(), value));
    match values.iter().find(|(_, value)| value.len() > MAX_VALUE_BYTES) {
        Some((key, value)) => Err(FactsError::TooLong { key: key.clone(), bytes: value.len() }),
        None => Ok(values),
    }
}

/// 64 bits: enough to distinguish one publication of a node from the next.
fn short_digest(hash: Sha256) -> String {
    hex::encode(&hash.finalize()[..8])
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("facts hold only maps with text keys, texts and numbers")
}

/// Decodes the values of one node; `get` returns the value of a key.
///
/// An invalid entry or chunk of pending endpoints is left out and named in [`Decoded::rejected`]; the rest is valid.
///
/// # Errors
/// [`FactsError::Absent`] and [`FactsError::Incomplete`] mean "later"; every other error means that the node's facts
/// as a whole are invalid.
pub fn decode<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Decoded, FactsError> {
    let text = get(FACTS_KEY).ok_or(FactsError::Absent)?;
    let head: FactsHead = parse(FACTS_KEY, text)?;
    check_version(head.v)?;
    if head.pending_chunks > MAX_PENDING_CHUNKS {
        return Err(FactsError::TooManyPending(head.pending_chunks));
    }
    let mut facts: NodeFacts = parse(FACTS_KEY, text)?;
    facts.validate()?;

    let mut rejected = Vec::new();
    let mut pending = Vec::new();
    for key in (0..head.pending_chunks).map(pending_key) {
        let text = get(&key).ok_or_else(|| FactsError::Incomplete(key.clone()))?;
        match parse_chunk(&key, text) {
            Err(error) => rejected.push(RejectedValue { key, reason: error.to_string() }),
            Ok(chunk) if chunk.set != head.pending_set => return Err(FactsError::Incomplete(key)),
            Ok(chunk) => {
                for entry in chunk.entries {
                    match parse_entry(&facts, entry) {
                        Ok(entry) => pending.push(entry),
                        Err(reason) => rejected.push(RejectedValue { key: key.clone(), reason }),
                    }
                }
            }
        }
    }
    facts.pending = pending;
    if !head.unwell_set.is_empty() {
        let key = UNWELL_KEY.to_owned();
        let text = get(&key).ok_or_else(|| FactsError::Incomplete(key.clone()))?;
        match parse_unwell(text) {
            Ok(value) if value.set != head.unwell_set => return Err(FactsError::Incomplete(key)),
            Ok(value) => {
                facts.unwell = unpack(value);
                if let Err(error) = facts.validate() {
                    facts.unwell.clear();
                    rejected.push(RejectedValue { key, reason: error.to_string() });
                }
            }
            Err(error) => rejected.push(RejectedValue { key, reason: error.to_string() }),
        }
    }
    Ok(Decoded { facts, rejected })
}

fn parse_unwell(text: &str) -> Result<UnwellValue, FactsError> {
    let value: UnwellValue = parse(UNWELL_KEY, text)?;
    check_version(value.v)?;
    Ok(value)
}

fn parse<'t, T: Deserialize<'t>>(key: &str, text: &'t str) -> Result<T, FactsError> {
    if text.len() > MAX_VALUE_BYTES {
        return Err(FactsError::TooLong { key: key.to_owned(), bytes: text.len() });
    }
    serde_json::from_str(text)
        .map_err(|error| FactsError::Malformed { key: key.to_owned(), reason: error.to_string() })
}

fn check_version(version: u32) -> Result<(), FactsError> {
    if version == FACTS_VERSION { Ok(()) } else { Err(FactsError::Version(version)) }
}

fn parse_chunk(key: &str, text: &str) -> Result<ChunkValue, FactsError> {
    let chunk: ChunkValue = parse(key, text)?;
    check_version(chunk.v)?;
    Ok(chunk)
}

fn parse_entry(facts: &NodeFacts, entry: serde_json::Value) -> Result<PendingEndpoint, String> {
    let entry: PendingEndpoint = serde_json::from_value(entry).map_err(|error| error.to_string())?;
    entry.validate(facts).map_err(|error| error.to_string())?;
    Ok(entry)
}
