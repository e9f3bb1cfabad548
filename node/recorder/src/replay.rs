//! Replaying a log.

use node_core::{Command, Event, Node, Now};

use crate::{Entry, codec};

/// The first difference between the replay and the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// An event has other commands.
    Commands {
        /// The event; the first is 1.
        event: u64,
        /// The digest in the log.
        expected: u32,
        /// The digest of the commands now.
        found: u32,
        /// The commands now.
        commands: Vec<Command>,
    },
    /// The node's state differs at a checkpoint.
    State {
        /// The last event before the checkpoint.
        event: u64,
        /// The digest of the node in the log.
        expected: u32,
        /// The digest of the node now.
        found: u32,
    },
}

/// The result of one entry.
#[derive(Debug)]
pub enum Told {
    /// The checkpoint is the node's new state.
    Checkpoint,
    /// An event and its commands.
    Event {
        /// Its number; the first is 1.
        number: u64,
        /// Its time.
        now: Now,
        /// The event.
        event: Box<Event>,
        /// The commands.
        commands: Vec<Command>,
    },
    /// An event without a node: its segment has no readable checkpoint.
    Skipped,
}

/// A replay. It takes the entries of one log in order; after a difference it continues like the log at the next
/// checkpoint.
#[derive(Default)]
pub struct Replay {
    node: Option<Box<Node>>,
    /// Events replayed.
    pub events: u64,
    /// Checkpoints taken over or compared.
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
                // A new node has no past, and a gap in the log hides it.
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

    /// The next entry may not continue the previous one: a segment ended early, or one is missing.
    pub fn interrupt(&mut self) {
        self.node = None;
    }
}
