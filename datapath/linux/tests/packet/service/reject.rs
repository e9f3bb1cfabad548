//! Requests that no backend gets: the client is told by a TCP reset or an ICMP error.

use datapath_abi::{DropReason, ERRORS_PER_WINDOW, counter_slot};
use datapath_linux::object::Program::{FromEndpoint, FromHost};

use super::{PORT, VIP, backend, install};
use crate::{
    check::{check, direction_of},
    expected::Expected,
    frame::{CLIENT_PORT, Frame},
    kernel::TC_ACT_REDIRECT,
    populated_kernel,
    wire::{
        PORT_UNREACHABLE, TCP,
        tcp_flag::{ACK, RST},
    },
    world::{A, B, GATEWAY, HOST},
};

#[test]
fn service_without_backends_rejects_endpoints_and_the_host() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[]);
    let rejected = |frame: &Frame, answer: &Frame, identity: u32| {
        Expected::rejected(frame, answer, DropReason::NoBackend).identities(identity, 0)
    };
    let syn = Frame::syn(&A, &VIP);
    check(&mut kernel, FromEndpoint, &syn, rejected(&syn, &syn.reset_of_syn(), A.identity));
    // Sequence number 5, acknowledgement number 9, and 20 bytes of data.
    let ack = Frame::ack(&A, &VIP)
        .payload(&[&[3, 232, 0, 80, 0, 0, 0, 5, 0, 0, 0, 9, 0x50, ACK][..], &[0; 20]].concat());
    check(&mut kernel, FromEndpoint, &ack, rejected(&ack, &ack.reset_of_ack(), A.identity));
    let datagram = Frame::udp(&A, &VIP, 5000, PORT);
    let error = datagram.icmp_reject(PORT_UNREACHABLE, VIP.address);
    check(&mut kernel, FromEndpoint, &datagram, rejected(&datagram, &error, A.identity));
    let from_host = Frame::syn(&GATEWAY, &VIP);
    let reset = from_host.reset_of_syn().towards(&GATEWAY);
    check(&mut kernel, FromHost, &from_host, rejected(&from_host, &reset, HOST));
    // A reset is not answered.
    let rst = Frame::tcp(&A, &VIP, CLIENT_PORT, PORT, RST);
    let expected = Expected::dropped(&rst, DropReason::NoBackend).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &rst, expected);
}

#[test]
fn service_rejects_are_limited() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[]);
    let syn = Frame::syn(&A, &VIP);
    let rejects = (0..4 * ERRORS_PER_WINDOW)
        .filter(|_| kernel.run(FromEndpoint, &syn, None).code == TC_ACT_REDIRECT)
        .count() as u32;
    // The window may end in between, on a slow machine more than once.
    assert!(rejects >= ERRORS_PER_WINDOW, "{rejects}");
    let slot = counter_slot(DropReason::NoBackend as u8, direction_of(FromEndpoint));
    assert_eq!(kernel.snapshot().counters[&slot].0, u64::from(4 * ERRORS_PER_WINDOW));
}

#[test]
fn service_drops_malformed_headers() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[backend(1, B)]);
    let cut = Frame::ipv4(&A, &VIP, TCP, &[3, 232, 0, 80, 0, 0]);
    let expected = Expected::dropped(&cut, DropReason::Malformed).without_ports();
    check(&mut kernel, FromEndpoint, &cut, expected);
    let first_fragment = Frame::ipv4(&A, &VIP, TCP, &[3, 232, 0, 80, 0, 0, 0, 0]).fragment(0, true);
    let expected = Expected::dropped(&first_fragment, DropReason::Fragment).without_ports();
    check(&mut kernel, FromEndpoint, &first_fragment, expected);
}
