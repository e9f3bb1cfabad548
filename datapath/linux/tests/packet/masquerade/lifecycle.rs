//! Masqueraded flows whose entries were lost, are out of date, or end.

use datapath_abi::{
    DropReason, EndpointEntry, Event, EventKind, FlowAction, FlowEntry, V4, flow_flags, map_name,
};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev};

use super::{delivered, masqueraded, masquerading_kernel, open, port, response};
use crate::{
    check::check,
    clock::wait_for_the_next_second,
    expected::{Entry, Expected, event, next_epoch, used_by},
    frame::Frame,
    kernel::Kernel,
    world::{A, INTERNET, bump_epoch},
};

#[test]
fn masquerade_entry_of_one_direction_restores_the_other_with_the_same_port() {
    let mut kernel = masquerading_kernel!();
    let (syn, ack) = (Frame::syn(&A, &INTERNET), Frame::ack(&A, &INTERNET));
    // The flow has the port of the second try, and that of the first one is free since: it must be looked up.
    let port = port(&syn, 1);
    let [(key, original), reply] = open_with_first_port_occupied(&mut kernel, &syn, port);
    let out = masqueraded(&ack, port);

    kernel.remove_flow(&key);
    let once = FlowEntry { packets: 1, bytes: ack.len(), tcp_flags: ack.tcp_flags(), ..original };
    check(&mut kernel, FromEndpoint, &ack, Expected::redirected(&out).entry((key, once)));

    // Without the reply direction's entry, responses are dropped, which does not reset the connection.
    kernel.remove_flow(&reply.0);
    let back = response(&Frame::syn_ack(&INTERNET, &A), port);
    check(&mut kernel, FromNetdev, &back, Expected::dropped(&back, DropReason::NoTranslation));
    // Within about a second, the endpoint's next packet finds that the entry is gone, and restores it.
    wait_for_the_next_second();
    let twice = FlowEntry { packets: 2, bytes: 2 * ack.len(), ..once };
    check(&mut kernel, FromEndpoint, &ack, Expected::redirected(&out).entry((key, twice)).entry(reply));
}

/// Opens a flow by the port of its second try; afterwards the first one is free.
#[track_caller]
fn open_with_first_port_occupied(kernel: &mut Kernel, syn: &Frame, port: u16) -> [Entry; 2] {
    let obstacle = super::ports::occupy(kernel, super::port(syn, 0));
    let entries = open(kernel, syn, port);
    kernel.remove_flow(&obstacle);
    entries
}

#[test]
fn masquerade_port_outlasts_an_epoch_bump() {
    let mut kernel = masquerading_kernel!();
    let (syn, syn_ack) = (Frame::syn(&A, &INTERNET), Frame::syn_ack(&INTERNET, &A));
    let port = port(&syn, 0);
    let [original, reply] = open(&mut kernel, &syn, port);
    bump_epoch(&mut kernel, A.address);
    // The response comes first.
    let back = response(&syn_ack, port);
    let expected = Expected::redirected(&delivered(&syn_ack))
        .entry(next_epoch(original))
        .entry(next_epoch(used_by(&back, reply)));
    check(&mut kernel, FromNetdev, &back, expected);
}

#[test]
fn masquerade_drops_responses_to_a_deleted_endpoint() {
    let mut kernel = masquerading_kernel!();
    let syn = Frame::syn(&A, &INTERNET);
    let port = port(&syn, 0);
    open(&mut kernel, &syn, port);
    kernel.remove::<V4, EndpointEntry>(map_name::ENDPOINTS_V4, &A.address);
    bump_epoch(&mut kernel, A.address);
    let back = response(&Frame::syn_ack(&INTERNET, &A), port);
    check(&mut kernel, FromNetdev, &back, Expected::dropped(&back, DropReason::UnknownDestination));
}

#[test]
fn masquerade_flow_end_event_names_the_endpoint() {
    let mut kernel = masquerading_kernel!();
    let (syn, rst) = (Frame::syn(&A, &INTERNET), Frame::rst_from_server(&INTERNET, &A));
    let port = port(&syn, 0);
    let [(key, original), reply] = open(&mut kernel, &syn, port);
    let back = response(&rst, port);
    let (reply_key, reply) = used_by(&back, reply);
    let ended = |entry: FlowEntry| FlowEntry { flags: entry.flags | flow_flags::ENDED, ..entry };
    let end = Event {
        packets: 2,
        bytes: syn.len() + back.len(),
        src_identity: A.identity,
        dst_identity: INTERNET.identity,
        action: FlowAction::Local as u8,
        tcp_flags: rst.tcp_flags(),
        ..event(&syn, EventKind::FlowEnd)
    };
    let expected = Expected::redirected(&delivered(&rst))
        .entry((key, ended(original)))
        .entry((reply_key, ended(reply)))
        .event(end);
    check(&mut kernel, FromNetdev, &back, expected);
}
