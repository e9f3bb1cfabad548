//! Network address translation: writing the addresses and ports of a flow's entry into its packets, and finding ports for
//! source NAT.

mod icmp;
pub mod masquerade;
pub mod node_socket;
mod translate;

use datapath_abi::{DropReason, FlowEntry};
use datapath_packet::Ipv4;

use crate::context::Packet;

/// Writes the entry's addresses and ports into the packet, whose IP header becomes `ip` but for its addresses.
///
/// # Errors
/// [`DropReason::MasqueradeProtocol`], [`DropReason::HelperFailed`].
#[inline(always)]
pub fn translate(packet: &Packet, ip: &Ipv4, entry: &FlowEntry) -> Result<(), DropReason> {
    if packet.is_icmp_error {
        icmp::translate_error(packet, ip, entry)
    } else {
        translate::translate_packet(packet, ip, entry)
    }
}
