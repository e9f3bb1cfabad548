//! Services: which backend a flow to a frontend goes to, and what keeps the flow there.
//!
//! Clients are translated on their own node, in both directions, wherever the backend is; external clients on the node that
//! they come in by.

pub mod affinity;
mod backend;
pub mod dsr;
pub mod frontend;
pub mod nodeport;
mod socket;
mod socket_backend;

use datapath_abi::{BACKEND_ELSEWHERE, DropReason, NodeConfig};
use datapath_packet::{flow_hash, opens};

use crate::{
    context::{Backend, Origin, Packet},
    decide::previous::is_plain_reply,
    epoch,
};

/// Chooses a backend, if the packet goes to a frontend: `packet.key` then leads to the backend, and `packet.pre_dnat_key` to
/// the frontend.
///
/// # Errors
/// [`DropReason::NoBackend`], [`DropReason::NoTranslation`], [`DropReason::ServiceSource`].
#[inline(always)]
pub fn choose_backend(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    match packet.origin {
        Origin::Node | Origin::Stack | Origin::Native | Origin::Unproven => return Ok(()),
        // The other node has chosen.
        Origin::DsrNode => {
            let (address, port_be) = (packet.dsr_address, packet.dsr_port_be);
            epoch::snapshot_destination(packet, address);
            set_backend(packet, Backend { id: BACKEND_ELSEWHERE, address, port_be });
            return Ok(());
        }
        Origin::Endpoint | Origin::Host | Origin::External => {}
    }
    // A reply goes to its client, whatever service is reached at the client's address.
    if is_plain_reply(packet) {
        return Ok(());
    }
    if packet.service_id == 0 {
        frontend::find(packet, config);
    }
    if packet.is_evaluated_as_original {
        frontend::keep(packet);
    }
    if packet.origin == Origin::External {
        nodeport::admit(packet)?;
    }
    if packet.service_id == 0 {
        return Ok(());
    }
    // A table is switched before its members go: where a member was chosen that has gone, the second look sees the next table.
    choose(packet);
    if packet.backend.id == 0 {
        choose(packet);
    }
    if packet.backend.id == 0 { Err(DropReason::NoBackend) } else { Ok(()) }
}

#[inline(never)]
fn choose(packet: &mut Packet) {
    let candidate = candidate(packet);
    let service_id = packet.service_id;
    let mut chosen = packet.backend;
    backend::confirm(&mut chosen, candidate, service_id, |chosen| {
        // User space takes an entry away first, and raises the epoch after.
        epoch::snapshot_destination(packet, chosen.address);
    });
    if chosen.id != 0 {
        set_backend(packet, chosen);
    }
}

#[inline(always)]
fn set_backend(packet: &mut Packet, backend: Backend) {
    packet.backend = backend;
    packet.pre_dnat_key = packet.key;
    packet.key.dst = backend.address;
    packet.key.dst_port_be = backend.port_be;
}

/// The backend that the flow has, or else that of its slot; 0: none.
#[inline(always)]
fn candidate(packet: &mut Packet) -> u32 {
    let previous = &packet.previous.backend;
    // A flow goes on with its backend; a connection that begins in the flow's place is new.
    if previous.id != 0
        && backend::is_in_place(previous, packet.service_id)
        && (!opens(packet.tcp_flags) || backend::takes_new_flows(previous.id, packet.service_id))
    {
        return previous.id;
    }
    // A reply comes from the backend that it names, or from nobody.
    if packet.is_evaluated_as_original && previous.id != 0 && !packet.previous.is_of_external_client {
        return 0;
    }
    packet.is_affinity_new = true;
    // A flow has the same hash on all nodes and each time: a flow that was forgotten comes to the same backend as long as the
    // table is the same.
    backend::of_table(packet.service_id, &packet.key, flow_hash(&packet.key))
}
