//! Frontends: which service port is reached at an address and port.

use datapath_abi::{FrontendKey, NodeConfig, V4};

use crate::{context::Packet, maps::FRONTENDS_V4, service::backend};

/// The service port at exactly this frontend; 0: none.
#[inline(always)]
pub fn service_id_of(frontend: &FrontendKey<V4>) -> u32 {
    // SAFETY: as in `lookup::endpoint_at`; the number is copied.
    match unsafe { FRONTENDS_V4.get(frontend) } {
        Some(entry) => entry.service,
        None => 0,
    }
}

/// The service port at an address and the port that the packet goes to; 0: none.
#[inline(always)]
pub fn service_id_at(packet: &Packet, address: V4) -> u32 {
    let key = &packet.key;
    service_id_of(&FrontendKey { address, port_be: key.dst_port_be, protocol: key.protocol, pad: 0 })
}

/// Notes the service port that the packet goes to.
#[inline(always)]
pub fn find(packet: &mut Packet, config: &NodeConfig) {
    let dst = packet.key.dst;
    packet.service_id = service_id_at(packet, dst);
    // A look into the ipcache would cost the first packet of every flow some 60 ns.
    if packet.service_id == 0 && (dst == config.gateway_v4 || dst == config.underlay_v4) {
        packet.service_id = service_id_at(packet, [0; 4]);
    }
}

/// If the packet's frontend is gone, its flow keeps the service port of its backend.
#[inline(always)]
pub fn keep(packet: &mut Packet) {
    if packet.service_id == 0
        && let Some(entry) = backend::at(packet.previous.backend.id)
    {
        packet.service_id = entry.service;
    }
}
