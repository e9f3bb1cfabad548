//! What is decided about a packet.

pub mod flow;
