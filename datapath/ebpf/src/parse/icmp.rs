//! ICMP errors: they belong to the flow of the packet that they quote.

use datapath_abi::{FlowKey, V4};
use datapath_packet::{IcmpError, Quote};

use crate::context::Packet;

/// The key of the flow that an error is about, in the direction in which the error goes. `None`: the quote is cut short, or
/// the error goes to somebody else than the sender of the quoted packet.
#[inline(always)]
pub fn quoted_flow_key(packet: &Packet) -> Option<FlowKey<V4>> {
    let quote = packet.read::<Quote>(quote_offset(packet)).ok()?;
    let key = quote.reply_key()?;
    if key.dst == packet.key.dst { Some(key) } else { None }
}

/// Whether an error comes from the host that the quoted packet was for, and not from a router on the way.
///
/// Inline: a frame of its own, empty as it is, takes 32 bytes from the deepest chain of calls on old kernels.
#[inline(always)]
pub fn is_from_quoted_destination(packet: &Packet) -> bool {
    // Nobody's address where there is none: what was not read must not be compared (the verifier).
    let quoted = match packet.read::<Quote>(quote_offset(packet)) {
        Ok(quote) => quote.ip.dst,
        Err(_) => [0; 4],
    };
    quoted == packet.key.src
}

/// Where the quoted packet begins.
#[inline(always)]
pub fn quote_offset(packet: &Packet) -> usize {
    usize::from(packet.transport_offset) + size_of::<IcmpError>()
}
