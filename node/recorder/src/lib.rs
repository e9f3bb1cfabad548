//! The log of everything that a node was told, and its replay: on any machine the same build gives the same commands.
//!
//! Here are the bytes alone; whoever has a disk writes and reads them. The log is a row of segments. Each begins with a
//! checkpoint, the whole node as it was, so that the oldest can be thrown away; then come the events, each with its
//! time and a digest of the commands that it led to. All that `Node::handle` depends on is in these: configuration and
//! random generator are a part of the node.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod codec;
mod frame;
mod read;
mod replay;
mod write;

pub use frame::{MAX_FRAME_BYTES, begins_segment};
pub use read::{Entry, LogError, Segment, read};
pub use replay::{Difference, Replay, Told};
pub use write::{Recorder, Sink, header};
