//! The log of one agent's events, on a disk that is too slow now and then.

use std::sync::{Arc, Mutex, PoisonError};

use node_core::{Command, Event, Node, Now};
use node_recorder::{Recorder, Replay, Sink, begins_segment, header, read};

/// A segment's events, in bytes: a few for each life.
const SEGMENT_BYTES: u64 = 100_000;

/// The log of one machine, through all lives of its agent. A copy writes to the same one.
#[derive(Clone)]
pub struct Log {
    recorder: Arc<Mutex<Recorder<Disk>>>,
}

struct Disk {
    rng: fastrand::Rng,
    segments: Vec<Vec<u8>>,
}

impl Sink for Disk {
    fn take(&mut self, frame: Vec<u8>) -> bool {
        if self.rng.u16(..) == 0 {
            return false;
        }
        if begins_segment(&frame) {
            self.segments.push(header("test"));
        }
        match self.segments.last_mut() {
            Some(segment) => segment.extend(frame),
            None => return false,
        }
        true
    }

    fn has_room(&self) -> bool {
        true
    }
}

impl Log {
    /// An empty one.
    pub fn new(seed: u64) -> Self {
        let disk = Disk { rng: fastrand::Rng::with_seed(seed), segments: Vec::new() };
        Self { recorder: Arc::new(Mutex::new(Recorder::new(disk, SEGMENT_BYTES))) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Recorder<Disk>) -> T) -> T {
        act(&mut self.recorder.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn begin(&mut self, node: &Node) {
        self.with(|recorder| recorder.checkpoint(node));
    }

    pub(crate) fn handle(&mut self, node: &mut Node, now: Now, event: Event) -> Vec<Command> {
        self.with(|recorder| {
            recorder.before(now, &event, node);
            let commands = node.handle(now, event);
            recorder.after(&commands, node);
            commands
        })
    }

    /// Runs it again. Returns how many events that were.
    ///
    /// # Errors
    /// The first difference from life, or what cannot be read.
    pub fn replay(&self) -> Result<u64, String> {
        let mut replay = Replay::default();
        for bytes in &self.with(|recorder| recorder.sink().segments.clone()) {
            let segment = read(bytes).map_err(|error| error.to_string())?;
            segment.entries.into_iter().for_each(|entry| drop(replay.tell(entry)));
        }
        match replay.difference {
            Some(difference) => Err(format!("{difference:?}")),
            None => Ok(replay.events),
        }
    }

    /// The segments as they are on disk.
    pub fn segments(&self) -> Vec<Vec<u8>> {
        self.with(|recorder| recorder.sink().segments.clone())
    }
}
