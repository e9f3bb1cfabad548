//! External clients, who come by the underlay interface to a frontend of a service: to an address that is routed to this
//! node, or to a node port.
//!
//! A backend of this node sees the client, and answers past this node's stack. A backend behind the tunnel sees this node's
//! gateway with a port of the masquerade's range, and a backend that is reached without a tunnel the node's underlay address
//! likewise: what they answer comes back to this node. All of it is in the flow's two entries.

use aya_ebpf::btf_maps::lpm_trie::Key;
use datapath_abi::{DropReason, NodeConfig, SOURCE_SERVICE_BITS, Source, V4, service_flags};
use datapath_packet::opens;

use crate::{
    context::Packet,
    maps::{SERVICES, SOURCES_LPM_V4},
    route,
    service::frontend,
};

/// A node port is one of each of the node's addresses, and not only of those that the programs are told.
#[inline(always)]
pub fn find_at_unlisted_address(packet: &mut Packet, config: &NodeConfig) {
    if packet.service_id != 0 {
        return;
    }
    let service_id = frontend::service_id_at(packet, [0; 4]);
    if service_id != 0 && route::is_own_address(packet, config, packet.key.dst) {
        packet.service_id = service_id;
        packet.is_at_unlisted_address = true;
    }
}

/// Whether the client may use the service, and whether the backend may answer the client itself.
///
/// # Errors
/// [`DropReason::NoTranslation`]: the packet goes to no service. [`DropReason::ServiceSource`].
#[inline(always)]
pub fn admit(packet: &mut Packet) -> Result<(), DropReason> {
    if packet.service_id == 0 {
        return Err(DropReason::NoTranslation);
    }
    let Some(service) = SERVICES.get(packet.service_id) else { return Ok(()) };
    // A client of the fleet would be answered by another way than it asked by, and another node would not know this node by
    // an address that the fleet does not know.
    packet.is_dsr_wanted =
        service.flags & service_flags::DSR != 0 && !packet.is_fleet_client && !packet.is_at_unlisted_address;
    let is_refused = service.flags & service_flags::SOURCES != 0
        && !packet.is_fleet_client
        && !is_in_source_range(packet.service_id, packet.key.src);
    if is_refused { Err(DropReason::ServiceSource) } else { Ok(()) }
}

#[inline(always)]
fn is_in_source_range(service: u32, address: V4) -> bool {
    let bits = SOURCE_SERVICE_BITS + 8 * size_of::<V4>() as u32;
    SOURCES_LPM_V4.get(&Key::new(bits, Source { service, address })).is_some()
}

/// Whether the backend answers the client itself: as the service says, but a flow that is under way keeps its mode.
#[inline(always)]
pub fn is_dsr(packet: &Packet) -> bool {
    let previous = &packet.previous;
    let is_under_way =
        previous.backend.id != 0 && previous.backend.id == packet.backend.id && !opens(packet.tcp_flags);
    if is_under_way {
        !previous.is_translated || packet.is_dsr_wanted && !previous.is_translated_at_both_ends
    } else {
        packet.is_dsr_wanted
    }
}

/// The source that a backend on the node itself sees: an address that the node's stack sends out by `warren_host`, and so by
/// `from_host`. The one before the gateway, which is no endpoint's: that of the network.
#[inline(always)]
pub fn address_for_host(config: &NodeConfig) -> V4 {
    u32::from_be_bytes(config.gateway_v4).wrapping_sub(1).to_be_bytes()
}
