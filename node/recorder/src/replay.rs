//! Running a log again.

use node_core::{Command, Event, Node, Now};

use crate::{Entry, codec};

/// The first place where the replay is not the life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// An event led to other commands.
    Commands {
        /// Which event, from 1.
        event: u64,
        /// The digest in the log.
        expected: u32,
        /// That of the commands now.
        found: u32,
        /// These commands.
        commands: Vec<Command>,
    },
    /// The node had come to be another one by the time of a checkpoint.
    State {
        /// After which event.
        event: u64,
        /// The digest of the node in the log.
        expected: u32,
        /// That of the node now.
        found: u32,
    },
}

/// What was made of one entry.
#[derive(Debug)]
pub enum Told {
    /// A node to go on from.
    Checkpoint,
    /// An event, and what it led to.
    Event {
        /// Which, from 1.
        number: u64,
        /// When.
        now: Now,
        /// What.
        event: Box<Event>,
        /// The commands.
        commands: Vec<Command>,
    },
    /// An event without a node to tell it to: its segment has no readable begin.
    Skipped,
}

/// A replay. Entries of one log go in, in order; it goes on after a difference as the log does at its next checkpoint.
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
                // A fresh start has no past, and a gap no known one.
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

    /// What follows is not known to continue what came before: a segment ended early, or one is missing.
    pub fn interrupt(&mut self) {
        self.node = None;
    }
}
