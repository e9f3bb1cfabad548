//! What a packet's headers say.

pub mod icmp;
