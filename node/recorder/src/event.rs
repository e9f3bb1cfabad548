//! An event as the log holds it.

use datapath_plan::ObservedDelta;
use node_core::{Event, Node};
use serde::{Deserialize, Serialize};

/// An event, with an observation told as its difference from what the node expected: an audit that finds nothing new
/// takes a few bytes, whatever the size of the fleet. `E` is `&Event` where a record is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RecordedEvent<E = Box<Event>> {
    /// Any event but a successful observation.
    Whole(E),
    /// `Event::Observed(Ok(_))`
    Observed(ObservedDelta),
}

impl<'a> RecordedEvent<&'a Event> {
    /// The record of an event that `node` is about to handle.
    pub(crate) fn new(event: &'a Event, node: &Node) -> Self {
        match event {
            Event::Observed(Ok(observed)) => Self::Observed(ObservedDelta::new(node.applied(), observed)),
            _ => Self::Whole(event),
        }
    }
}

impl RecordedEvent {
    /// The event, for a node in the state that it had when the event was recorded.
    pub(crate) fn into_event(self, node: &Node) -> Box<Event> {
        match self {
            Self::Whole(event) => event,
            Self::Observed(delta) => Box::new(Event::Observed(Ok(delta.apply(node.applied())))),
        }
    }
}
