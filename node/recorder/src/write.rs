//! Recording: checkpoints, and events as they come.

use bincode::{enc::write::Writer, error::EncodeError};
use node_core::{Command, Event, Node, Now};
use serde::Serialize;

use crate::{
    RecordedEvent, codec,
    frame::{CHECKPOINT, FIRST, HEADER_BYTES, LAST, MAX_FRAME_BYTES, seal},
};

/// The first bytes of a segment.
pub(crate) const MAGIC: [u8; 8] = *b"WRNLOG2\n";

/// Where frames go.
pub trait Sink {
    /// Accepts a frame without waiting; false when there is no room for it.
    fn take(&mut self, frame: Vec<u8>) -> bool;

    /// Whether a checkpoint may be tried after a frame was not accepted.
    fn has_room(&self) -> bool;
}

/// The bytes before a segment's first frame. `version` is the agent's: the node of another build may have another
/// shape.
pub fn header(version: &str) -> Vec<u8> {
    let version = &version.as_bytes()[..version.len().min(255)];
    [&MAGIC[..], &[u8::try_from(version.len()).expect("cut to it")], version].concat()
}

/// Records one node. The caller calls [`Recorder::checkpoint`] first, then [`Recorder::before`] and [`Recorder::after`]
/// around each event.
///
/// After a frame that the sink did not accept, events are lost until the next checkpoint, which says how many.
pub struct Recorder<S> {
    sink: S,
    /// The frame that is being filled, behind room for its header.
    frame: Vec<u8>,
    flags: u8,
    /// A part of the record was not accepted.
    broken: bool,
    /// Events since the last one that a replay can reach.
    lost: u64,
    written: u64,
    segment_bytes: u64,
}

impl<S: Sink> Recorder<S> {
    /// A segment ends when its records reach `segment_bytes`.
    pub fn new(sink: S, segment_bytes: u64) -> Self {
        Self { sink, frame: Vec::new(), flags: 0, broken: false, lost: 0, written: 0, segment_bytes }
    }

    /// Begins a segment.
    pub fn checkpoint(&mut self, node: &Node) {
        self.broken = false;
        self.begin(CHECKPOINT);
        let lost = self.lost;
        self.put(&lost);
        self.put(node);
        self.end();
        if !self.broken {
            self.lost = 0;
        }
        self.written = 0;
    }

    /// Records an event that `node` is about to handle.
    pub fn before(&mut self, now: Now, event: &Event, node: &Node) {
        if !self.broken {
            self.begin(0);
            self.put(&(now, RecordedEvent::new(event, node)));
        }
    }

    /// Completes the record with the commands that `node` returned. True for the first event that is lost.
    pub fn after(&mut self, commands: &[Command], node: &Node) -> bool {
        let was_broken = self.broken && self.lost > 0;
        if self.broken {
            self.lost += 1;
        } else {
            match codec::digest(&commands) {
                Ok(digest) => self.write(&digest.to_le_bytes()).expect("it only appends"),
                Err(_) => self.broken = true,
            }
            self.end();
            self.lost += u64::from(self.broken);
        }
        let due = self.written >= self.segment_bytes || self.broken;
        if due && self.sink.has_room() {
            self.checkpoint(node);
        }
        self.broken && !was_broken
    }

    /// The sink.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    fn begin(&mut self, flags: u8) {
        self.flags = FIRST | flags;
        self.frame.clear();
        self.frame.resize(HEADER_BYTES, 0);
    }

    fn put(&mut self, value: &impl Serialize) {
        if bincode::serde::encode_into_writer(value, &mut *self, codec::config()).is_err() {
            self.broken = true;
        }
    }

    fn end(&mut self) {
        self.flags |= LAST;
        self.send();
        self.frame = Vec::new();
    }

    fn send(&mut self) {
        let mut frame = std::mem::take(&mut self.frame);
        if !self.broken {
            seal(&mut frame, self.flags);
            self.written += frame.len() as u64;
            self.broken = !self.sink.take(frame);
        }
        self.flags &= !FIRST;
        self.frame.resize(HEADER_BYTES, 0);
    }
}

impl<S: Sink> Writer for Recorder<S> {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), EncodeError> {
        // The rest of a broken record need not be encoded.
        if self.broken {
            return Err(EncodeError::Other("not accepted"));
        }
        while !bytes.is_empty() {
            let room = HEADER_BYTES + MAX_FRAME_BYTES - self.frame.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == HEADER_BYTES + MAX_FRAME_BYTES {
                self.send();
            }
        }
        Ok(())
    }
}
