//! Replaying a log, and comparing the replay with the log's digests.

use node_core::{Command, Event, Node, Now};

use crate::{Entry, codec};

/// The first place where the replay differs from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// An event led to other commands.
    Commands {
        /// The event's number, from 1.
        event: u64,
        /// The commands' digest in the log.
        expected: u32,
        /// The digest of the replayed commands.
        found: u32,
        /// The replayed commands.
        commands: Vec<Command>,
    },
    /// At a checkpoint the replayed node has another state.
    State {
        /// The number of the last event before the checkpoint.
        event: u64,
        /// The node's digest in the log.
        expected: u32,
        /// The digest of the replayed node.
        found: u32,
    },
}

/// What the replay did with one entry.
#[derive(Debug)]
pub enum Told {
    /// It took over the checkpoint's node.
    Checkpoint,
    /// The node handled an event.
    Event {
        /// The event's number, from 1.
        number: u64,
        /// The event's time.
        now: Now,
        /// The event.
        event: Box<Event>,
        /// The commands that the node returned.
        commands: Vec<Command>,
    },
    /// There is no node to handle the event: the segment's checkpoint could not be read.
    Skipped,
}

/// A replay of the entries of one log, in order. After a difference it goes on with the log's next checkpoint.
#[derive(Default)]
pub struct Replay {
    node: Option<Box<Node>>,
    /// Events replayed.
    pub events: u64,
    /// Checkpoints read.
    pub checkpoints: u64,
    /// Events that are not in the log.
    pub lost: u64,
    /// Events that could not be replayed.
    pub skipped: u64,
    /// The first difference.
    pub difference: Option<Difference>,
}

impl Replay {
    /// Takes the next entry.
    pub fn tell(&mut self, entry: Entry) -> Told {
        match entry {
            Entry::Checkpoint { lost, node, digest } => {
                self.checkpoints += 1;
                self.lost += lost;
                // A start has no past to compare with, and after lost events the past is not known.
                let continues = lost == 0 && node.counters().events > 0;
                if let Some(before) = self.node.as_ref().filter(|_| continues) {
                    let found = codec::digest(before).unwrap_or_default();
                    if found != digest {
                        let state = Difference::State { event: self.events, expected: digest, found };
                        self.difference.get_or_insert(state);
                    }
                }
                self.node = Some(node);
                Told::Checkpoint
            }
            Entry::Event { now, event, digest } => {
                let Some(node) = &mut self.node else {
                    self.skipped += 1;
                    return Told::Skipped;
                };
                let event = event.into_event(node);
                let commands = node.handle(now, event.as_ref().clone());
                self.events += 1;
                let found = codec::digest(&commands).unwrap_or_default();
                if found != digest && self.difference.is_none() {
                    let (event, commands) = (self.events, commands.clone());
                    self.difference = Some(Difference::Commands { event, expected: digest, found, commands });
                }
                Told::Event { number: self.events, now, event, commands }
            }
        }
    }

    /// Says that the next entry need not continue the previous one: a segment ended early, or one is missing.
    pub fn interrupt(&mut self) {
        self.node = None;
    }
}
