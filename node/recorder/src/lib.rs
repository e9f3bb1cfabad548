//! The log of all events of a node, and its replay: the same build gives the same commands on any machine.
//!
//! This crate has the bytes alone; the shell with the disk writes and reads them. The log is a sequence of segments.
//! Each begins with a checkpoint, the whole state of the node, so that the oldest can be deleted; then come the
//! events, each with its time and a digest of its commands. `Node::handle` depends on nothing else: configuration and
//! random generator are part of the node.

pub mod codec;
mod frame;
mod read;
mod replay;
mod write;

pub use frame::{MAX_FRAME_BYTES, begins_segment};
pub use read::{Entry, LogError, Segment, read};
pub use replay::{Difference, Replay, Told};
pub use write::{Recorder, Sink, header};
