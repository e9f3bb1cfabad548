//! Direct server return: an external client sent to a frontend of another node, which passed the packet on untouched, with
//! the backend that it chose in the inner Ethernet addresses. This node does the rest: it translates, and answers the client
//! itself, from the frontend.

use datapath_abi::{BACKEND_ELSEWHERE, FlowEntry, NODE_NONE, V4, identity_number as identity, service_flags};
use datapath_packet::{Macs, dsr_backend};

use crate::{context::Packet, lookup, maps::SERVICES, service::frontend};

/// Notes the backend that a packet's Ethernet addresses name, if they do.
#[inline(always)]
pub fn parse(packet: &mut Packet, macs: &Macs) {
    let (is_dsr, address, port_be) = dsr_backend(macs);
    if is_dsr {
        packet.is_dsr = true;
        packet.dsr_address = address;
        packet.dsr_port_be = port_be;
    }
}

/// Whether the entry is for packets for which another node has chosen this backend, or for which no other node has.
#[inline(always)]
pub fn is_same_backend(entry: &FlowEntry, is_dsr: bool, address: V4, port_be: [u8; 2]) -> bool {
    if entry.backend != BACKEND_ELSEWHERE {
        return !is_dsr;
    }
    is_dsr && entry.rewrite_dst == address && entry.rewrite_dst_port_be == port_be
}

/// Whether the packet goes to a frontend of a service with direct server return: one of every node's, or a port of the node
/// that has passed the packet on ([`NODE_NONE`]: nobody knows which that was).
#[inline(never)]
pub fn is_served_by(packet: &Packet, node: u32) -> bool {
    let mut service_id = frontend::service_id_at(packet, packet.key.dst);
    if service_id == 0 {
        let owner = lookup::owner(packet.key.dst);
        if owner.identity == identity::REMOTE_NODE && (owner.node == node || node == NODE_NONE) {
            service_id = frontend::service_id_at(packet, [0; 4]);
        }
    }
    SERVICES.get(service_id).is_some_and(|service| service.flags & service_flags::DSR != 0)
}
