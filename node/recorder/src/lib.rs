//! The log of all events of a node, and its replay: the same build gives the same commands on any machine.
//!
//! This crate defines the bytes and does no I/O. The log is a sequence of segments. A segment begins with a checkpoint,
//! which is the whole node, so that older segments can be deleted; events follow, each with its time and a digest of the
//! commands that it led to. `Node::handle` depends on nothing else, since the node contains its configuration and its
//! random generator.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod codec;
mod event;
mod frame;
mod read;
mod replay;
mod write;

pub use event::RecordedEvent;
pub use frame::{MAX_FRAME_BYTES, begins_segment};
pub use read::{Entry, LogError, Segment, read};
pub use replay::{Difference, Replay, Told};
pub use write::{Recorder, Sink, header};
