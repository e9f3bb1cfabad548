//! Destination NAT of requests and its reverse of responses, for each kind of client and of backend.

use datapath_abi::{FlowAction, FlowEntry, NodeConfig, SourceKind, node_flags};
use datapath_linux::object::Program::{FromEndpoint, FromHost, FromNetdev, FromTunnel, ToEndpoint};

use super::{
    Backend, PORT, VIP, add_frontend, backend, conversations, delivered, dnat, dnat_entries,
    full_nat_entries, install, nat_port, open, reverse_dnat,
};
use crate::{
    check::check,
    expected::{Entry, Expected, previous_epoch, used_by},
    frame::{CLIENT_PORT, Frame},
    kernel::Kernel,
    namespace, populated_kernel,
    wire::{
        SCTP, TCP,
        tcp_flag::{ACK, SYN},
    },
    world::{A, B, CONFIG, GATEWAY, INTERNET, Peer, R, UNDERLAY, configure, tunnel_from},
};

#[test]
fn service_request_reaches_a_local_backend() {
    let mut kernel = populated_kernel!();
    let b = backend(1, B);
    install(&mut kernel, &[b]);
    for (request, _) in conversations(&b) {
        let [original, _] = open(&mut kernel, &request, &b);
        let expected = Expected::redirected(&delivered(&request, &b)).entry(used_by(&request, original));
        check(&mut kernel, FromEndpoint, &request, expected);
    }
}

#[test]
fn service_response_of_a_local_backend_comes_from_the_frontend() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let entries = dnat_entries(&Frame::syn(&B, &VIP), &B, &a);
    entries.into_iter().for_each(|entry| kernel.set_flow(entry));
    let response = Frame::tcp(&A, &B, a.port, CLIENT_PORT, SYN | ACK);
    let out = reverse_dnat(&response).towards(&B).ttl(63);
    let expected = Expected::redirected(&out).entry(used_by(&response, entries[1]));
    check(&mut kernel, FromEndpoint, &response, expected);
}

#[test]
fn service_of_a_remote_backend_translates_both_ways() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    for (request, response) in conversations(&r) {
        let [_, reply] = open(&mut kernel, &request, &r);
        let out = reverse_dnat(&response).towards(&A).ttl(63);
        let expected = Expected::redirected(&out).entry(used_by(&response, reply)).tunnel(tunnel_from(&R));
        check(&mut kernel, FromTunnel, &response, expected);
    }
}

#[test]
fn service_of_a_host_backend_translates_both_ways() {
    let mut kernel = populated_kernel!();
    let host = backend(1, GATEWAY);
    install(&mut kernel, &[host]);
    for (request, response) in conversations(&host) {
        let [_, reply] = open(&mut kernel, &request, &host);
        let out = reverse_dnat(&response).towards(&A);
        let expected = Expected::redirected(&out).entry(used_by(&response, reply));
        check(&mut kernel, FromHost, &response, expected);
        // At A's device the packet belongs to that flow and makes none of its own.
        check(&mut kernel, ToEndpoint, &out, Expected::passed(&out));
    }
}

/// The first packet of the node's stack to the frontend, and a second one of the same flow.
#[track_caller]
fn open_from_host(kernel: &mut Kernel, frame: &Frame, backend: &Backend) -> [Entry; 2] {
    let [original, reply] = dnat_entries(frame, &GATEWAY, backend);
    let out = dnat(frame, backend).towards(&backend.at);
    check(kernel, FromHost, frame, Expected::redirected(&out).opens(frame, [original, reply]));
    check(kernel, FromHost, frame, Expected::redirected(&out).entry(used_by(frame, original)));
    [original, reply]
}

#[test]
fn service_for_the_host_with_a_local_backend_translates_both_ways() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let request = Frame::syn(&GATEWAY, &VIP);
    let [_, reply] = open_from_host(&mut kernel, &request, &a);
    // At A's device the packet belongs to that flow and makes none of its own.
    let out = dnat(&request, &a).towards(&A);
    check(&mut kernel, ToEndpoint, &out, Expected::passed(&out));
    let response = Frame::tcp(&A, &GATEWAY, a.port, CLIENT_PORT, SYN | ACK);
    let out = reverse_dnat(&response).towards(&GATEWAY);
    check(&mut kernel, FromEndpoint, &response, Expected::redirected(&out).entry(used_by(&response, reply)));
}

#[test]
fn service_for_the_host_with_a_remote_backend_translates_both_ways() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let request = Frame::udp(&GATEWAY, &VIP, 5000, PORT).checksummed();
    let [_, reply] = open_from_host(&mut kernel, &request, &r);
    let response = Frame::udp(&R, &GATEWAY, r.port, 5000).checksummed();
    let out = reverse_dnat(&response).towards(&GATEWAY);
    let expected = Expected::redirected(&out).entry(used_by(&response, reply)).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &response, expected);
}

#[test]
fn service_of_an_external_backend_is_masqueraded_both_ways() {
    if !namespace::enter() {
        return;
    }
    let mut kernel = populated_kernel!();
    let underlay_ifindex = namespace::UNDERLAY_IFINDEX;
    configure(&mut kernel, NodeConfig { flags: node_flags::MASQUERADE, underlay_ifindex, ..CONFIG });
    let external = Peer {
        source: (SourceKind::Underlay, 0),
        action: (FlowAction::Underlay, underlay_ifindex),
        ..INTERNET
    };
    let external = backend(1, external);
    install(&mut kernel, &[external]);
    let (request, response) = conversations(&external).swap_remove(0);
    let port = nat_port(&request, &external, 0);
    let [original, reply] = full_nat_entries(&request, &A, &external, UNDERLAY.address, port);
    let out = dnat(&request, &external).source(UNDERLAY.address).source_port(port).ttl(63);
    let expected = Expected::redirected(&out).opens(&request, [original, reply]);
    check(&mut kernel, FromEndpoint, &request, expected);

    let response = response.destination(UNDERLAY.address).destination_port(port).on_underlay();
    let back =
        reverse_dnat(&response).destination(A.address).destination_port(CLIENT_PORT).towards(&A).ttl(63);
    let reply = used_by(&response, reply);
    check(&mut kernel, FromNetdev, &response, Expected::redirected(&back).entry(reply));
    // Without the original direction's entry, a stale reply entry restores it, with backend and port.
    kernel.remove_flow(&original.0);
    kernel.set_flow(previous_epoch(reply));
    let restored = FlowEntry { packets: 0, bytes: 0, tcp_flags: 0, ..original.1 };
    let expected = Expected::redirected(&back).entry(used_by(&response, reply)).entry((original.0, restored));
    check(&mut kernel, FromNetdev, &response, expected);
}

#[test]
fn service_node_port_is_a_frontend_for_endpoints() {
    let mut kernel = populated_kernel!();
    let b = backend(1, B);
    install(&mut kernel, &[b]);
    add_frontend(&mut kernel, [0; 4], TCP);
    for (own, port) in [(GATEWAY, 1000), (UNDERLAY, 1001)] {
        open(&mut kernel, &Frame::syn(&A, &own).source_port(port), &b);
    }
}

/// The SCTP checksum covers the ports and cannot be updated incrementally.
#[test]
fn service_over_sctp_cannot_change_the_port() {
    let mut kernel = populated_kernel!();
    let same_port = Backend { port: PORT, ..backend(1, B) };
    install(&mut kernel, &[same_port]);
    let frame = Frame::ipv4(&A, &VIP, SCTP, &[3, 232, 0, 80, 0, 0, 0, 1, 9, 9, 9, 9]);
    open(&mut kernel, &frame, &same_port);
    let other_port = backend(2, B);
    install(&mut kernel, &[other_port]);
    let frame = frame.source_port(1001);
    let expected = Expected::dropped(&frame, datapath_abi::DropReason::MasqueradeProtocol)
        .identities(A.identity, B.identity);
    check(&mut kernel, FromEndpoint, &frame, expected);
}
