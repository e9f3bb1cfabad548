//! Reading a segment, as far as it is intact.

use node_core::{Event, Node, Now};

use crate::{
    codec::{self, CodecError},
    frame::{CHECKPOINT, FIRST, LAST, open},
    write::MAGIC,
};

/// Why a file is not a readable segment.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file does not begin like a segment.
    #[error("it is no log of an agent's events")]
    Foreign,
    /// The record is intact, but written by another build.
    #[error(
        "record {index} cannot be read ({source}); it was written by warrend {version}: replay it with the warren-lab of the same build"
    )]
    Shape {
        /// The record; the first is 0.
        index: usize,
        /// The version of the agent that wrote it.
        version: String,
        /// The decoding error.
        source: CodecError,
    },
}

/// One record.
#[derive(Debug)]
pub enum Entry {
    /// The state of the node.
    Checkpoint {
        /// Events before the checkpoint that are not in the log.
        lost: u64,
        /// The node.
        node: Box<Node>,
        /// CRC-32C of its bytes.
        digest: u32,
    },
    /// An event.
    Event {
        /// Its time.
        now: Now,
        /// The event.
        event: Box<Event>,
        /// CRC-32C of its commands.
        digest: u32,
    },
}

/// One segment, as far as it is intact.
#[derive(Debug)]
pub struct Segment {
    /// The version of the agent that wrote it.
    pub version: String,
    /// Its records; the first is a checkpoint.
    pub entries: Vec<Entry>,
    /// Where the segment is cut off or damaged, as an offset in bytes; the rest cannot be read.
    pub damaged_at: Option<usize>,
}

/// Reads a segment. A crash or a flipped bit ends it early.
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
            // An unfinished record before this one is not part of the log.
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
