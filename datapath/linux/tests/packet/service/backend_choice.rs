//! Which backend a flow gets, and when it gets another one.

use datapath_abi::{BLOCK_SLOTS, BackendEntry, DropReason, FlowEntry, backend_flags, map_name};
use datapath_linux::object::Program::{FromEndpoint, FromTunnel};
use datapath_packet::{flow_hash, slot_of};

use super::{
    Backend, PORT, VIP, backend, conversations, delivered, dnat_entries, install, open, remove_backend,
    reverse_dnat, set_slots,
};
use crate::{
    check::check,
    expected::{Expected, next_epoch, used_by},
    frame::Frame,
    populated_kernel,
    world::{A, B, R, bump_epoch, tunnel_from},
};

#[test]
fn backend_choice_follows_the_slot_of_the_flow_hash() {
    let mut kernel = populated_kernel!();
    // More than one block of slots.
    let backends: Vec<Backend> = (1..=240).map(|id| Backend { id, at: B, port: 8000 + id as u16 }).collect();
    install(&mut kernel, &backends);
    // Few enough that the small flow table of this test evicts none: a CPU takes 128 entries at once.
    for port in 2000..2050 {
        let frame = Frame::udp(&A, &VIP, port, PORT);
        let (block, place) = slot_of(flow_hash(&frame.key()), backends.len() as u32);
        open(&mut kernel, &frame, &backends[(block * BLOCK_SLOTS + place) as usize]);
    }
}

#[test]
fn backend_choice_outlasts_a_change_of_the_table() {
    let mut kernel = populated_kernel!();
    let (b, r) = (backend(1, B), backend(2, R));
    install(&mut kernel, &[b]);
    let syn = Frame::syn(&A, &VIP);
    let [original, reply] = open(&mut kernel, &syn, &b);
    kernel.set(map_name::BACKENDS_V4, &r.id, &r.entry());
    let terminating = BackendEntry { flags: backend_flags::TERMINATING, ..b.entry() };
    kernel.set(map_name::BACKENDS_V4, &b.id, &terminating);
    set_slots(&mut kernel, 6, &[r]);
    // The flow is decided again and keeps its terminating backend.
    bump_epoch(&mut kernel, B.address);
    let ack = Frame::ack(&A, &VIP);
    let original = used_by(&ack, next_epoch(original));
    let expected = Expected::redirected(&delivered(&ack, &b)).entry(original).entry(next_epoch(reply));
    check(&mut kernel, FromEndpoint, &ack, expected);
    // A new connection gets the other backend, also with the same ports.
    bump_epoch(&mut kernel, A.address);
    let [(key, new), new_reply] = dnat_entries(&syn, &A, &r);
    let (_, counted) = used_by(&syn, original);
    let moved = FlowEntry {
        packets: counted.packets,
        bytes: counted.bytes,
        tcp_flags: counted.tcp_flags,
        epoch: new.epoch + 1,
        ..new
    };
    let expected =
        Expected::redirected(&delivered(&syn, &r)).entry((key, moved)).entry(next_epoch(new_reply));
    check(&mut kernel, FromEndpoint, &syn, expected);
}

#[test]
fn backend_choice_is_made_again_when_the_backend_is_gone() {
    let mut kernel = populated_kernel!();
    let (b, r) = (backend(1, B), backend(2, R));
    install(&mut kernel, &[b]);
    let request = Frame::udp(&A, &VIP, 5000, PORT);
    let [(key, original), _] = open(&mut kernel, &request, &b);
    kernel.set(map_name::BACKENDS_V4, &r.id, &r.entry());
    set_slots(&mut kernel, 6, &[r]);
    remove_backend(&mut kernel, &b);
    bump_epoch(&mut kernel, B.address);
    let [(_, new), reply] = dnat_entries(&request, &A, &r);
    let moved = FlowEntry { packets: 2, bytes: 2 * original.bytes, ..new };
    let expected = Expected::redirected(&delivered(&request, &r)).entry((key, moved)).entry(reply);
    check(&mut kernel, FromEndpoint, &request, expected);
}

#[test]
fn service_reply_decided_again_still_comes_from_the_frontend() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let (request, response) = conversations(&r).swap_remove(1);
    let [original, reply] = open(&mut kernel, &request, &r);
    bump_epoch(&mut kernel, R.address);
    let expected = Expected::redirected(&reverse_dnat(&response).towards(&A).ttl(63))
        .entry(next_epoch(original))
        .entry(used_by(&response, next_epoch(reply)))
        .tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &response, expected);
    // A removed backend's response is dropped.
    remove_backend(&mut kernel, &r);
    bump_epoch(&mut kernel, A.address);
    let expected = Expected::dropped(&response, DropReason::NoBackend)
        .identities(R.identity, A.identity)
        .tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &response, expected);
}
