//! Reading the whole records of a segment.

use node_core::{Node, Now};

use crate::{
    RecordedEvent,
    codec::{self, CodecError},
    frame::{CHECKPOINT, FIRST, LAST, open},
    write::MAGIC,
};

/// Why a file is no segment.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It does not begin with a segment's header, or begins with that of an older format.
    #[error("it is no log of an agent's events, or one of an older format")]
    Foreign,
    /// It is whole, but another build wrote it.
    #[error(
        "record {index} cannot be read ({source}); it was written by warrend {version}: replay it with the warren-lab of the same build"
    )]
    Shape {
        /// Which record, from 0.
        index: usize,
        /// The agent that wrote it.
        version: String,
        /// What does not fit.
        source: CodecError,
    },
}

/// One record.
#[derive(Debug)]
pub enum Entry {
    /// The whole node.
    Checkpoint {
        /// Preceding events that are not in the log.
        lost: u64,
        /// The node.
        node: Box<Node>,
        /// CRC-32C of the node's bytes.
        digest: u32,
    },
    /// An event that the node handled.
    Event {
        /// The event's time.
        now: Now,
        /// The event.
        event: RecordedEvent,
        /// CRC-32C of the commands that the event led to.
        digest: u32,
    },
}

/// The whole records of one segment.
#[derive(Debug)]
pub struct Segment {
    /// The agent that wrote it.
    pub version: String,
    /// The records; the first is a checkpoint.
    pub entries: Vec<Entry>,
    /// The offset of the first byte that cannot be read, where the segment is cut off or damaged.
    pub damaged_at: Option<usize>,
}

/// Reads a segment. One that a crash cut off, or with a flipped bit, gives the records before that place.
///
/// # Errors
/// [`LogError`]
pub fn read(bytes: &[u8]) -> Result<Segment, LogError> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(LogError::Foreign)?;
    let (length, rest) = rest.split_first().ok_or(LogError::Foreign)?;
    let (version, mut rest) = rest.split_at_checked((*length).into()).ok_or(LogError::Foreign)?;
    if *magic != MAGIC {
        return Err(LogError::Foreign);
    }
    let version = String::from_utf8_lossy(version).into_owned();
    let mut entries = Vec::new();
    let mut record = Vec::new();
    let mut whole = bytes.len() - rest.len();
    let mut damaged_at = None;
    while !rest.is_empty() {
        let Some((flags, payload, next)) = open(rest) else {
            damaged_at = Some(bytes.len() - rest.len());
            break;
        };
        if flags & FIRST != 0 {
            // An unfinished record before it is dropped.
            record.clear();
        }
        record.extend_from_slice(payload);
        rest = next;
        if flags & LAST != 0 {
            let entry = entry(flags & CHECKPOINT != 0, &record);
            let shape = |source| LogError::Shape { index: entries.len(), version: version.clone(), source };
            let entry = entry.map_err(shape)?;
            entries.push(entry);
            record.clear();
            whole = bytes.len() - rest.len();
        }
    }
    if whole < bytes.len() {
        damaged_at.get_or_insert(whole);
    }
    Ok(Segment { version, entries, damaged_at })
}

fn entry(checkpoint: bool, record: &[u8]) -> Result<Entry, CodecError> {
    if checkpoint {
        let (lost, used): (u64, usize) = bincode::serde::decode_from_slice(record, codec::config())?;
        let node = &record[used..];
        return Ok(Entry::Checkpoint { lost, node: codec::decode(node)?, digest: crc32c::crc32c(node) });
    }
    let split = record.len().saturating_sub(4);
    let digest = record[split..].try_into().map_or(0, u32::from_le_bytes);
    let (now, event) = codec::decode(&record[..split])?;
    Ok(Entry::Event { now, event, digest })
}
