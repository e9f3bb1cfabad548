//! Clients outside: they come by the underlay interface to a frontend, and are answered from it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use datapath_abi::{
    Direction::{Egress, Ingress},
    DropReason, FlowAction, FlowEntry, FlowKey, FrontendEntry, FrontendKey, LpmKey, NodeConfig,
    SOURCE_SERVICE_BITS, ServiceEntry, Source, SourceKind, V4, epoch_shard_v4, flow_flags, map_name,
    node_flags::{LEGACY_HOST_ROUTING, NATIVE},
    service_flags, service_port_bit,
};
use datapath_linux::object::Program::{
    FromEndpoint, FromHost, FromNetdev, FromOverlay, ToEndpoint, ToNetdev,
};
use datapath_packet::{TRIES, flow_hash, masquerade_port};

use crate::{
    check::{Verdict::*, *},
    frame::{Frame, ICMP, SCTP, TCP, UDP},
    furnished,
    kernel::{Kernel, Tunnel},
    namespace,
    service::{Backend, Entry, PORT, SERVICE, VIP, backend, raise, serve, served, to_backend},
    world::*,
};

/// INTERNET, as it comes by the underlay and is sent to past the stack.
const CLIENT: Peer = Peer {
    source: (SourceKind::Underlay, 0),
    action: (FlowAction::Underlay, CONFIG.underlay_ifindex),
    ..INTERNET
};
const UNREACHABLE: u8 = 3;
const TOO_BIG: u8 = 4;

/// A frame as it comes in by the underlay interface.
fn came(frame: Frame) -> Frame {
    frame.macs([0; 6], [2, 9, 9, 9, 9, 9])
}

/// A service of these backends, also at each port 80 of the node.
fn serving(kernel: &mut Kernel, backends: &[Backend]) {
    serve(kernel, backends);
    for protocol in [TCP, UDP, SCTP] {
        let key = FrontendKey { address: [0; 4], port_be: PORT.to_be_bytes(), protocol, pad: 0 };
        kernel.set(map_name::FRONTENDS_V4, &key, &FrontendEntry { service: SERVICE, kind: 2 });
    }
}

/// What the client sends to each frontend (an address of somebody else's network, a port of this node), and what the
/// backend answers to `as_seen`, whatever source port it sees.
fn conversations(backend: &Backend, as_seen: &Peer) -> Vec<(Frame, Frame)> {
    let (at, port) = (&backend.at, backend.port);
    let mut all = Vec::new();
    for (number, frontend) in (0..).zip([&VIP, &UNDERLAY]) {
        let own = |first: u16| first + number;
        all.push((
            Frame::tcp(&CLIENT, frontend, own(1000), PORT, 2),
            Frame::tcp(at, as_seen, port, own(1000), 0x12),
        ));
        all.push((Frame::udp(&CLIENT, frontend, own(5000), PORT), Frame::udp(at, as_seen, port, own(5000))));
        all.push((
            Frame::udp(&CLIENT, frontend, own(6000), PORT).checksummed(),
            Frame::udp(at, as_seen, port, own(6000)).checksummed(),
        ));
    }
    all.into_iter().map(|(request, answer)| (came(request), answer)).collect()
}

/// The answer as its client gets it: from the frontend that `request` went to.
fn to_client(answer: &Frame, request: &Frame) -> Frame {
    let key = request.key();
    let port = u16::from_be_bytes(key.src_port_be);
    answer.clone().source(key.dst).source_port(PORT).destination(key.src).destination_port(port)
}

fn new_event(frame: &Frame, client: &Peer, backend: &Backend) -> datapath_abi::Event {
    datapath_abi::Event {
        packets: 1,
        bytes: frame.len(),
        src_identity: client.identity,
        dst_identity: backend.at.identity,
        action: backend.at.action.0 as u8,
        ..event(frame, datapath_abi::EventKind::FlowNew, Ingress)
    }
}

/// The entries of a flow whose backend sees `source` and `port` instead of its client.
fn hidden(request: &Frame, client: &Peer, backend: &Backend, source: V4, port: u16) -> [Entry; 2] {
    let [(key, forward), (_, reverse)] = served(request, client, backend);
    let forward = FlowEntry {
        flags: forward.flags | flow_flags::REWRITE_SRC,
        rewrite_src: source,
        rewrite_src_port_be: port.to_be_bytes(),
        ..forward
    };
    let reverse = FlowEntry {
        flags: reverse.flags | flow_flags::REWRITE_DST,
        rewrite_dst: key.src,
        rewrite_dst_port_be: key.src_port_be,
        ..reverse
    };
    [(key, forward), (forward.reverse_key(&key), reverse)]
}

/// The port that the flow gets at the `attempt`-th try.
fn own_port(request: &Frame, backend: &Backend, attempt: u32) -> u16 {
    let hash = flow_hash(&to_backend(request, backend).key());
    masquerade_port(hash, CONFIG.masquerade_port_min, CONFIG.masquerade_port_max, attempt)
}

/// The request as a backend behind the tunnel gets it, by this port of the gateway.
fn through_tunnel(request: &Frame, backend: &Backend, port: u16) -> Frame {
    to_backend(request, backend).source(GATEWAY.address).source_port(port).towards(&backend.at)
}

/// The frame begins a flow to a backend of another node, by this port of the gateway.
#[track_caller]
fn begin_through_tunnel(kernel: &mut Kernel, request: &Frame, r: &Backend, port: u16) -> [Entry; 2] {
    let entries = hidden(request, &CLIENT, r, GATEWAY.address, port);
    let expected = Expected::forwarded(Redirect, through_tunnel(request, r, port).bytes(), Ingress)
        .flow(entries[0])
        .flow(entries[1])
        .event(new_event(request, &CLIENT, r));
    check(kernel, FromNetdev, &request.bytes(), expected);
    entries
}

/// The frame begins a flow to a backend of this node.
#[track_caller]
fn begin_here(kernel: &mut Kernel, request: &Frame, a: &Backend) -> [Entry; 2] {
    let entries = served(request, &CLIENT, a);
    let out = to_backend(request, a).towards(&a.at).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(entries[0])
        .flow(entries[1])
        .event(new_event(request, &CLIENT, a));
    check(kernel, FromNetdev, &request.bytes(), expected);
    entries
}

/// What was decided anew after the epoch of its backend was raised once.
fn again((key, entry): Entry) -> Entry {
    (key, FlowEntry { epoch: entry.epoch + 1, ..entry })
}

#[test]
fn to_a_backend_here_which_sees_the_client() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    for (request, answer) in conversations(&a, &CLIENT) {
        let [forward, reverse] = begin_here(&mut kernel, &request, &a);
        let out = to_client(&answer, &request).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(reverse, &answer));
        check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
        let out = to_backend(&request, &a).towards(&A).ttl(63);
        let expected =
            Expected::forwarded(Redirect, out.bytes(), Ingress).flow(and_packet(forward, &request));
        check(&mut kernel, FromNetdev, &request.bytes(), expected);
        // Through two frontends the flow would be the same to the backend.
        for (key, _) in [forward, reverse] {
            kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &key);
        }
    }
}

#[test]
fn to_a_backend_of_another_node_which_sees_the_gateway() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    for (request, answer) in conversations(&r, &GATEWAY) {
        let port = own_port(&request, &r, 0);
        let [forward, reverse] = begin_through_tunnel(&mut kernel, &request, &r, port);
        let answer = answer.destination_port(port);
        let out = to_client(&answer, &request).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
            .flow(and_packet(reverse, &answer))
            .origin(Some(tunnel_from(&R)));
        check(&mut kernel, FromOverlay, &answer.bytes(), expected);
        let expected = Expected::forwarded(Redirect, through_tunnel(&request, &r, port).bytes(), Ingress)
            .flow(and_packet(forward, &request));
        check(&mut kernel, FromNetdev, &request.bytes(), expected);
        // The other node is told that the world sends, and not who.
        let told = kernel.run_for_tunnel_key(FromNetdev, &request.bytes());
        assert_eq!(told, Tunnel { identity: WORLD, underlay: NODE_5.address });
    }
    let partner = came(Frame::udp(&PARTNER, &VIP, 5000, PORT));
    let told = kernel.run_for_tunnel_key(FromNetdev, &partner.bytes());
    assert_eq!(told.identity, WORLD, "only this node numbers that range");
}

/// The other end of the tunnel: with the address of a node, and as the world.
#[test]
fn a_backend_here_of_a_client_at_another_node() {
    let mut kernel = furnished!();
    let tunnel = Tunnel { identity: WORLD, underlay: NODE_5.address };
    let client = Peer { identity: WORLD, ..GATEWAY_OF_5 };
    let request = Frame::tcp(&client, &A, 61_500, 8080, 2);
    let expected = Expected::forwarded(Redirect, request.clone().towards(&A).ttl(63).bytes(), Ingress)
        .new_flow(&request, &client, &A)
        .origin(Some(tunnel));
    check(&mut kernel, FromOverlay, &request.bytes(), expected);
    // As an endpoint's the world's identity is none.
    let forged = Frame::syn(&Peer { identity: WORLD, ..R }, &A);
    let expected = Expected::dropped(&forged, DropReason::ForgedIdentity, Ingress)
        .identities(WORLD, 0)
        .origin(Some(tunnel));
    check(&mut kernel, FromOverlay, &forged.bytes(), expected);
}

#[test]
fn to_a_backend_outside_which_sees_the_node() {
    let mut kernel = furnished!();
    let partner = Peer { source: CLIENT.source, action: CLIENT.action, ..PARTNER };
    let nobody_knows = Peer { address: [198, 51, 100, 77], ..CLIENT };
    let epoch = epoch_of(nobody_knows.address);
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(nobody_knows.address), &epoch);
    for at in [partner, nobody_knows] {
        let outside = backend(1, at);
        serving(&mut kernel, &[outside]);
        for (request, answer) in conversations(&outside, &UNDERLAY) {
            let port = own_port(&request, &outside, 0);
            let entries = hidden(&request, &CLIENT, &outside, UNDERLAY.address, port);
            let out = to_backend(&request, &outside).source(UNDERLAY.address).source_port(port).ttl(63);
            let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
                .flow(entries[0])
                .flow(entries[1])
                .event(new_event(&request, &CLIENT, &outside));
            check(&mut kernel, FromNetdev, &request.bytes(), expected);
            let answer = came(answer.destination_port(port));
            let out = to_client(&answer, &request).ttl(63);
            let expected =
                Expected::forwarded(Redirect, out.bytes(), Ingress).flow(and_packet(entries[1], &answer));
            check(&mut kernel, FromNetdev, &answer.bytes(), expected);
            kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &entries[0].0);
        }
    }
}

#[test]
fn without_a_tunnel_a_backend_of_another_node_sees_the_node() {
    let mut kernel = furnished!();
    kernel.set(map_name::CONFIG, &0u32, &NodeConfig { flags: NATIVE, vxlan_ifindex: 0, ..CONFIG });
    let r = backend(
        1,
        Peer {
            source: CLIENT.source,
            action: CLIENT.action,
            dst_mac: GATEWAY.dst_mac,
            src_mac: GATEWAY.src_mac,
            ..R
        },
    );
    serving(&mut kernel, &[r]);
    let (request, answer) = conversations(&r, &UNDERLAY).swap_remove(0);
    let port = own_port(&request, &r, 0);
    let entries = hidden(&request, &CLIENT, &r, UNDERLAY.address, port);
    let out = to_backend(&request, &r).source(UNDERLAY.address).source_port(port).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(entries[0])
        .flow(entries[1])
        .event(new_event(&request, &CLIENT, &r));
    check(&mut kernel, FromNetdev, &request.bytes(), expected);
    let answer = came(answer.destination_port(port));
    let out = to_client(&answer, &request).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress).flow(and_packet(entries[1], &answer));
    check(&mut kernel, FromNetdev, &answer.bytes(), expected);
}

#[test]
fn by_the_stack_it_goes_both_ways() {
    let mut kernel = furnished!();
    kernel.set(map_name::CONFIG, &0u32, &NodeConfig { flags: LEGACY_HOST_ROUTING, ..CONFIG });
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    let (request, answer) = conversations(&a, &CLIENT).swap_remove(0);
    let client = Peer { action: (FlowAction::Stack, 0), ..CLIENT };
    let entries = served(&request, &client, &a);
    let inside = to_backend(&request, &a);
    let expected = Expected::forwarded(Pass, inside.bytes(), Ingress)
        .flow(entries[0])
        .flow(entries[1])
        .event(new_event(&request, &client, &a));
    check(&mut kernel, FromNetdev, &request.bytes(), expected);
    // The stack's routes lead by `warren_host` to A's device, where it belongs to its flow and makes none of its own.
    let handed = inside.clone().towards(&A);
    check(&mut kernel, FromHost, &inside.bytes(), Expected::forwarded(Redirect, handed.bytes(), Egress));
    check(&mut kernel, ToEndpoint, &handed.bytes(), Expected::forwarded(Pass, handed.bytes(), Ingress));
    // And back: the source is written as it leaves.
    let expected = Expected::forwarded(Pass, answer.bytes(), Egress).flow(and_packet(entries[1], &answer));
    check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
    kernel.ingress_ifindex = HERE;
    let out = to_client(&answer, &request);
    check(&mut kernel, ToNetdev, &answer.bytes(), Expected::left(&out.bytes(), Egress));
}

fn allow(kernel: &mut Kernel, range: V4, prefix: u32) {
    let key = LpmKey {
        prefix_len: SOURCE_SERVICE_BITS + prefix,
        address: Source { service: SERVICE, address: range },
    };
    kernel.set(map_name::SOURCES_LPM_V4, &key, &1u32);
    let flags = service_flags::PRESENT | service_flags::SOURCES;
    kernel.set(
        map_name::SERVICES,
        &SERVICE,
        &ServiceEntry { table: 5 << 32 | 1, flags, ..ServiceEntry::default() },
    );
}

#[test]
fn source_ranges_bind_the_world() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    // Known before there were ranges; another service's do not count.
    let (request, _) = conversations(&a, &CLIENT).swap_remove(0);
    begin_here(&mut kernel, &request, &a);
    allow(&mut kernel, [203, 0, 113, 0], 24);
    let key =
        LpmKey { prefix_len: SOURCE_SERVICE_BITS, address: Source { service: SERVICE + 1, address: [0; 4] } };
    kernel.set(map_name::SOURCES_LPM_V4, &key, &1u32);
    raise(&mut kernel, A.address);
    let refused = |frame: &Frame| {
        Expected::dropped(frame, DropReason::ServiceSource, Ingress).identities(CLIENT.identity, 0)
    };
    for (request, _) in conversations(&a, &CLIENT) {
        check(&mut kernel, FromNetdev, &request.bytes(), refused(&request));
    }
    // Those within, and the fleet's own nodes.
    let node = Peer { identity: WORLD, source: CLIENT.source, action: CLIENT.action, ..UNDERLAY };
    let partner = Peer { source: CLIENT.source, action: CLIENT.action, ..PARTNER };
    for client in [partner, Peer { address: NODE_5.address, ..node }] {
        let request = came(Frame::udp(&client, &VIP, 5000, PORT));
        let entries = served(&request, &client, &a).map(again);
        let expected =
            Expected::forwarded(Redirect, to_backend(&request, &a).towards(&A).ttl(63).bytes(), Ingress)
                .flow(entries[0])
                .flow(entries[1])
                .event(new_event(&request, &client, &a));
        check(&mut kernel, FromNetdev, &request.bytes(), expected);
    }
    // A workload is of the fleet: policy says whether it may.
    let from_a = Frame::udp(&A, &VIP, 5000, PORT);
    assert_eq!(kernel.run(FromEndpoint, &from_a.bytes(), None).code, Redirect as u32);
}

#[test]
fn without_backends_the_client_is_refused() {
    let mut kernel = furnished!();
    serving(&mut kernel, &[]);
    let refused = |frame: &Frame, told: &Frame| {
        Expected::refused(frame, told, DropReason::NoBackend, Ingress).identities(CLIENT.identity, 0)
    };
    for frontend in [&VIP, &UNDERLAY] {
        let syn = came(Frame::syn(&CLIENT, frontend));
        check(&mut kernel, FromNetdev, &syn.bytes(), refused(&syn, &syn.reset(0, 1, true)));
        let datagram = came(Frame::udp(&CLIENT, frontend, 5000, PORT));
        let told = datagram.refused(UNREACHABLE, 3, 0, frontend.address);
        check(&mut kernel, FromNetdev, &datagram.bytes(), refused(&datagram, &told));
        let rst = came(Frame::tcp(&CLIENT, frontend, 1000, PORT, 4));
        let expected = Expected::dropped(&rst, DropReason::NoBackend, Ingress).identities(CLIENT.identity, 0);
        check(&mut kernel, FromNetdev, &rst.bytes(), expected);
    }
    // An address of the node's that nobody has.
    serving(&mut kernel, &[backend(1, NOBODY)]);
    let syn = came(Frame::syn(&CLIENT, &VIP));
    check(&mut kernel, FromNetdev, &syn.bytes(), refused(&syn, &syn.reset(0, 1, true)));
}

/// It sees an address that its stack sends out where `from_host` is.
#[test]
fn to_a_backend_that_is_this_node_and_back() {
    let mut kernel = furnished!();
    let host = backend(1, UNDERLAY);
    let seen = Peer { address: [10, 0, 1, 0], ..CLIENT };
    serving(&mut kernel, &[host]);
    for (request, answer) in conversations(&host, &seen) {
        let port = own_port(&request, &host, 0);
        let [forward, reverse] = hidden(&request, &CLIENT, &host, seen.address, port);
        let out = to_backend(&request, &host).source(seen.address).source_port(port).towards(&UNDERLAY);
        let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
            .flow(forward)
            .flow(reverse)
            .event(new_event(&request, &CLIENT, &host));
        check(&mut kernel, FromNetdev, &request.bytes(), expected);
        let answer = answer.destination_port(port);
        let out = to_client(&answer, &request).ttl(63).bytes();
        let reverse = and_packet(reverse, &answer);
        let expected = Expected::forwarded(Redirect, out.clone(), Egress).flow(reverse);
        check(&mut kernel, FromHost, &answer.bytes(), expected);
        // Decided again.
        raise(&mut kernel, UNDERLAY.address);
        let expected = Expected::forwarded(Redirect, out, Egress)
            .flow(again(forward))
            .flow(and_packet(again(reverse), &answer));
        check(&mut kernel, FromHost, &answer.bytes(), expected);
        kernel.set(map_name::EPOCHS, &epoch_shard_v4(UNDERLAY.address), &epoch_of(UNDERLAY.address));
    }
    // What answers nobody goes nowhere, and ends no connection.
    let stray = Frame::tcp(&UNDERLAY, &seen, 8080, 61_999, 0x10);
    let expected = Expected::dropped(&stray, DropReason::UnknownDestination, Egress);
    check(&mut kernel, FromHost, &stray.bytes(), expected);
}

#[test]
fn who_sends_too_much_or_too_far_is_told_by_the_frontend() {
    let mut kernel = furnished!();
    serving(&mut kernel, &[backend(1, R)]);
    let long = came(Frame::ipv4(&CLIENT, &VIP, UDP, &[0; 1431]).source_port(5000).destination_port(PORT));
    let told = long.refused(UNREACHABLE, TOO_BIG, 1450, VIP.address);
    let expected =
        Expected::refused(&long, &told, DropReason::TooBig, Ingress).identities(CLIENT.identity, R.identity);
    check(&mut kernel, FromNetdev, &long.bytes(), expected);
    serving(&mut kernel, &[backend(2, A)]);
    let far = came(Frame::udp(&CLIENT, &VIP, 5001, PORT).ttl(1));
    let told = far.refused(11, 0, 0, VIP.address);
    let expected = Expected::refused(&far, &told, DropReason::TtlExceeded, Ingress)
        .identities(CLIENT.identity, A.identity);
    check(&mut kernel, FromNetdev, &far.bytes(), expected);
}

#[test]
fn what_is_no_services_is_left_alone() {
    let mut kernel = furnished!();
    serving(&mut kernel, &[backend(1, A)]);
    let elsewhere = Peer { address: [10, 201, 0, 9], ..VIP };
    let frames = [
        Frame::tcp(&CLIENT, &VIP, 1000, 81, 2),
        Frame::tcp(&CLIENT, &UNDERLAY, 1000, 22, 2),
        Frame::udp(&NODE_5, &UNDERLAY, 50_000, TUNNEL_PORT),
        // A service's port, and no frontend.
        Frame::syn(&CLIENT, &elsewhere),
        Frame::echo_request(&CLIENT, &VIP, 9),
        Frame::ipv4(&CLIENT, &VIP, 50, &[0, 80, 0, 80, 0, 0, 0, 0]),
        Frame::ipv4(&CLIENT, &VIP, UDP, &[7; 32]).fragment(2, false),
        Frame::ipv4(&CLIENT, &VIP, TCP, &[3, 232, 0, 80, 0, 0]),
        Frame::ipv4(&CLIENT, &VIP, ICMP, &[3; 4]),
        Frame::syn(&CLIENT, &VIP).ethertype(0x86dd),
    ];
    for frame in frames.map(came) {
        check(&mut kernel, FromNetdev, &frame.bytes(), Expected::left(&frame.bytes(), Ingress));
    }
    let mut cut = came(Frame::syn(&CLIENT, &VIP)).bytes();
    cut.truncate(40);
    check(&mut kernel, FromNetdev, &cut, Expected::left(&cut, Ingress));
    // Addressed to another's Ethernet address.
    let frame = Frame::syn(&CLIENT, &VIP).macs([2, 1, 1, 1, 1, 1], [2, 9, 9, 9, 9, 9]);
    check(&mut kernel, FromNetdev, &frame.bytes(), Expected::left(&frame.bytes(), Ingress));
}

#[test]
fn nobody_comes_from_outside_with_an_address_of_the_fleet() {
    let mut kernel = furnished!();
    serving(&mut kernel, &[backend(1, A)]);
    for peer in [&A, &B, &R, &UNKNOWN_AT_5, &UNDERLAY, &GATEWAY] {
        let frame = came(Frame::udp(peer, &VIP, 5000, PORT));
        let expected = Expected::dropped(&frame, DropReason::UnderlaySource, Ingress);
        check(&mut kernel, FromNetdev, &frame.bytes(), expected);
    }
}

#[test]
fn sctp_reaches_only_who_sees_its_client() {
    let mut kernel = furnished!();
    // A port cannot be replaced: its checksum covers it.
    let a = Backend { port: PORT, ..backend(1, A) };
    serving(&mut kernel, &[a]);
    let request = came(Frame::ipv4(&CLIENT, &VIP, SCTP, &[3, 232, 0, 80, 0, 0, 0, 1]));
    begin_here(&mut kernel, &request, &a);
    serving(&mut kernel, &[Backend { port: PORT, ..backend(2, R) }]);
    let request = came(Frame::ipv4(&CLIENT, &VIP, SCTP, &[3, 233, 0, 80, 0, 0, 0, 1]));
    let expected = Expected::dropped(&request, DropReason::MasqueradeProtocol, Ingress)
        .identities(CLIENT.identity, R.identity);
    check(&mut kernel, FromNetdev, &request.bytes(), expected);
}

#[test]
fn no_port_left_is_counted_and_passes() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    let (request, _) = conversations(&r, &GATEWAY).swap_remove(0);
    let occupied: Vec<FlowKey<V4>> = (0..TRIES)
        .map(|attempt| {
            let port = own_port(&request, &r, attempt);
            let [_, (key, entry)] = hidden(&request, &PARTNER, &r, GATEWAY.address, port);
            let entry = FlowEntry { rewrite_dst: PARTNER.address, ..entry };
            kernel.set(map_name::FLOWS_V4, &key, &entry);
            key
        })
        .collect();
    let expected = Expected::dropped(&request, DropReason::MasqueradePorts, Ingress)
        .identities(CLIENT.identity, R.identity);
    check(&mut kernel, FromNetdev, &request.bytes(), expected);
    let last = occupied[occupied.len() - 1];
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &last);
    begin_through_tunnel(&mut kernel, &request, &r, u16::from_be_bytes(last.dst_port_be));
}

#[test]
fn a_services_port_is_no_port_of_ours() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    let (request, _) = conversations(&r, &GATEWAY).swap_remove(0);
    let (word, bit) = service_port_bit(TCP, own_port(&request, &r, 0));
    kernel.set(map_name::SERVICE_PORTS, &word, &bit);
    let port = own_port(&request, &r, 1);
    begin_through_tunnel(&mut kernel, &request, &r, port);
}

#[test]
fn either_half_brings_back_the_other() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    let (request, answer) = conversations(&r, &GATEWAY).swap_remove(0);
    let port = own_port(&request, &r, 0);
    let answer = answer.destination_port(port);
    let [forward, reverse] = begin_through_tunnel(&mut kernel, &request, &r, port);
    // The client's half is gone: its next packet goes on by the port that the other half holds.
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &forward.0);
    let ack = came(Frame::tcp(&CLIENT, &VIP, 1000, PORT, 0x10));
    let (key, entry) = forward;
    let once = FlowEntry { packets: 1, bytes: ack.len(), tcp_flags: 0x10, ..entry };
    let expected =
        Expected::forwarded(Redirect, through_tunnel(&ack, &r, port).bytes(), Ingress).flow((key, once));
    check(&mut kernel, FromNetdev, &ack.bytes(), expected);
    // The backend's half is gone: it is not refused, and the client's next packet brings it back.
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &reverse.0);
    let expected = Expected::dropped(&answer, DropReason::NoTranslation, Ingress)
        .identities(R.identity, 0)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &answer.bytes(), expected);
    wait_for_the_next_second();
    let twice = FlowEntry { packets: 2, bytes: 2 * ack.len(), ..once };
    let expected = Expected::forwarded(Redirect, through_tunnel(&ack, &r, port).bytes(), Ingress)
        .flow((key, twice))
        .flow(reverse);
    check(&mut kernel, FromNetdev, &ack.bytes(), expected);
}

#[test]
fn answers_that_are_decided_again_still_come_from_the_frontend() {
    let mut kernel = furnished!();
    let (a, r) = (backend(1, A), backend(1, R));
    serving(&mut kernel, &[a]);
    for (request, answer) in conversations(&a, &CLIENT).into_iter().take(2) {
        let [forward, reverse] = begin_here(&mut kernel, &request, &a);
        raise(&mut kernel, A.address);
        let out = to_client(&answer, &request).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Egress)
            .flow(again(forward))
            .flow(and_packet(again(reverse), &answer));
        check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
        kernel.set(map_name::EPOCHS, &epoch_shard_v4(A.address), &epoch_of(A.address));
    }
    serving(&mut kernel, &[r]);
    for (request, answer) in conversations(&r, &GATEWAY).into_iter().skip(2).take(2) {
        let port = own_port(&request, &r, 0);
        let answer = answer.destination_port(port);
        let [forward, reverse] = begin_through_tunnel(&mut kernel, &request, &r, port);
        raise(&mut kernel, R.address);
        let out = to_client(&answer, &request).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
            .flow(again(forward))
            .flow(and_packet(again(reverse), &answer))
            .origin(Some(tunnel_from(&R)));
        check(&mut kernel, FromOverlay, &answer.bytes(), expected);
        // Not from another node.
        let (key, entry) = and_packet(again(reverse), &answer);
        kernel.set(map_name::FLOWS_V4, &key, &FlowEntry { epoch: entry.epoch - 1, ..entry });
        let elsewhere = Tunnel { identity: R.identity, underlay: [192, 0, 2, 6] };
        let expected = Expected::dropped(&answer, DropReason::InnerSource, Ingress)
            .identities(R.identity, 0)
            .origin(Some(elsewhere));
        check(&mut kernel, FromOverlay, &answer.bytes(), expected);
        kernel.set(map_name::EPOCHS, &epoch_shard_v4(R.address), &epoch_of(R.address));
    }
}

#[test]
fn a_port_of_the_node_is_one_of_each_of_its_addresses() {
    // First: programs, test runs and routes are then of the same namespace.
    if !namespace::enter() {
        return;
    }
    let mut kernel = furnished!();
    let underlay_ifindex = namespace::UNDERLAY_IFINDEX;
    kernel.set(map_name::CONFIG, &0u32, &NodeConfig { underlay_ifindex, ..CONFIG });
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    // Also where backends answer themselves: their nodes do not know this address.
    let flags = service_flags::PRESENT | service_flags::DSR;
    let entry = ServiceEntry { table: 5 << 32 | 1, flags, ..ServiceEntry::default() };
    kernel.set(map_name::SERVICES, &SERVICE, &entry);
    let other = Peer { address: namespace::OTHER_ADDRESS, ..UNDERLAY };
    let request = came(Frame::udp(&CLIENT, &other, 5000, PORT));
    let port = own_port(&request, &r, 0);
    let client = Peer { action: (FlowAction::Underlay, underlay_ifindex), ..CLIENT };
    let [forward, reverse] = hidden(&request, &client, &r, GATEWAY.address, port);
    let expected = Expected::forwarded(Redirect, through_tunnel(&request, &r, port).bytes(), Ingress)
        .flow(forward)
        .flow(reverse)
        .event(new_event(&request, &CLIENT, &r));
    check(&mut kernel, FromNetdev, &request.bytes(), expected);
    let answer = Frame::udp(&R, &GATEWAY, r.port, port);
    let expected = Expected::forwarded(Redirect, to_client(&answer, &request).ttl(63).bytes(), Ingress)
        .flow(and_packet(reverse, &answer))
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &answer.bytes(), expected);
    // Not of what is behind the node.
    for address in [namespace::BEHIND_ANOTHER_DEVICE, namespace::UNREACHABLE, [10, 201, 0, 9]] {
        let elsewhere = Peer { address, ..UNDERLAY };
        let frame = came(Frame::udp(&CLIENT, &elsewhere, 5000, PORT));
        check(&mut kernel, FromNetdev, &frame.bytes(), Expected::left(&frame.bytes(), Ingress));
    }
}

/// Makes the table forget what nobody has used: it fills it with flows of somebody else.
#[track_caller]
pub fn flood(kernel: &mut Kernel, key: &FlowKey<V4>) {
    for port in 10_000..40_000 {
        kernel.run(FromEndpoint, &Frame::udp(&A, &B, port, 7).bytes(), None);
        if port % 100 == 0 && kernel.flow(key).is_none() {
            kernel.events();
            return;
        }
    }
    panic!("the table forgets nothing");
}

/// Keeps the thread on one CPU: what a CPU has just added, others do not evict.
pub fn stay_on_this_cpu() {
    let cpu = nix::sched::sched_getcpu().expect("the kernel tells");
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("the kernel has as many");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("it may stay");
}

/// A table that is full forgets, and never half of what it would need: whoever speaks next goes on as before.
#[test]
fn what_a_full_table_forgets_goes_on() {
    let mut kernel = furnished!();
    stay_on_this_cpu();
    for (at, flags) in [(A, 0), (R, 0), (R, service_flags::DSR)] {
        let backend = backend(1, at);
        serving(&mut kernel, &[backend]);
        let flags = service_flags::PRESENT | flags;
        let entry = ServiceEntry { table: 5 << 32 | 1, flags, ..ServiceEntry::default() };
        kernel.set(map_name::SERVICES, &SERVICE, &entry);
        let syn = came(Frame::tcp(&CLIENT, &VIP, 1000, PORT, 2));
        let ack = came(Frame::tcp(&CLIENT, &VIP, 1000, PORT, 0x10));
        assert_eq!(kernel.run(FromNetdev, &syn.bytes(), None).code, Redirect as u32);
        let before = kernel.run(FromNetdev, &ack.bytes(), None);
        let entry = kernel.flow(&syn.key()).expect("the flow is known");
        let back_key = entry.reverse_key(&syn.key());
        let answer = match at.source.0 {
            SourceKind::Endpoint => Frame::tcp(&A, &CLIENT, backend.port, 1000, 0x10),
            _ => Frame::tcp(&R, &GATEWAY, backend.port, u16::from_be_bytes(entry.rewrite_src_port_be), 0x10),
        };
        // Of what is in use it forgets the half that is not; then it has neither.
        for is_whole_gone in [false, true] {
            flood(&mut kernel, &back_key);
            if is_whole_gone {
                kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &syn.key());
            } else {
                assert!(kernel.flow(&syn.key()).is_some(), "what is in use stays");
                wait_for_the_next_second();
            }
            let after = kernel.run(FromNetdev, &ack.bytes(), None);
            assert_eq!((after.code, after.bytes), (before.code, before.bytes.clone()), "{at:?}");
            // And what answers it. (Of one that answers itself nothing comes by.)
            if flags & service_flags::DSR == 0 {
                let out = to_client(&answer, &ack).ttl(63).bytes();
                let (program, tunnel) = match at.source.0 {
                    SourceKind::Endpoint => (FromEndpoint, None),
                    _ => (FromOverlay, Some(tunnel_from(&R))),
                };
                let answered = kernel.run(program, &answer.bytes(), tunnel);
                assert_eq!((answered.code, answered.bytes), (Redirect as u32, out), "{at:?}");
                // It has been used, and is not the one to be forgotten.
                kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &back_key);
            }
        }
        kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &syn.key());
    }
}

/// The sender knows its endpoint first: one decision, and no more.
#[test]
fn a_backends_new_identity_is_learnt_from_its_answer() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    let (request, answer) = conversations(&r, &GATEWAY).swap_remove(1);
    let port = own_port(&request, &r, 0);
    let [forward, reverse] = begin_through_tunnel(&mut kernel, &request, &r, port);
    let answer = answer.destination_port(port);
    let newer = Tunnel { identity: R.identity + 1, underlay: NODE_5.address };
    let mut reverse = (reverse.0, FlowEntry { src_identity: newer.identity, ..reverse.1 });
    let forward = (forward.0, FlowEntry { dst_identity: newer.identity, ..forward.1 });
    let out = to_client(&answer, &request).ttl(63);
    let expected =
        |reverse| Expected::forwarded(Redirect, out.bytes(), Ingress).flow(reverse).origin(Some(newer));
    reverse = and_packet(reverse, &answer);
    check(&mut kernel, FromOverlay, &answer.bytes(), expected(reverse).flow(forward));
    check(&mut kernel, FromOverlay, &answer.bytes(), expected(and_packet(reverse, &answer)));
}

#[test]
fn fragments_follow_their_first() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    let first = came(Frame::udp(&CLIENT, &VIP, 5000, PORT).checksummed().fragment(0, true));
    let port = own_port(&first, &r, 0);
    let [forward, reverse] = begin_through_tunnel(&mut kernel, &first, &r, port);
    let rest = came(Frame::ipv4(&CLIENT, &VIP, UDP, &[7; 32]).fragment(2, false));
    let out = rest.clone().source(GATEWAY.address).destination(R.address).towards(&R);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress).flow(and_packet(forward, &rest));
    check(&mut kernel, FromNetdev, &rest.bytes(), expected);
    // And back.
    let first = Frame::udp(&R, &GATEWAY, r.port, port).checksummed().fragment(0, true);
    let reverse = and_packet(reverse, &first);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    let expected = Expected::forwarded(Redirect, to_client(&first, &request).ttl(63).bytes(), Ingress)
        .flow(reverse)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &first.bytes(), expected);
    let rest = Frame::ipv4(&R, &GATEWAY, UDP, &[8; 16]).fragment(2, false);
    let out = rest.clone().source(VIP.address).destination(CLIENT.address).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(and_packet(reverse, &rest))
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &rest.bytes(), expected);
}

#[test]
fn errors_about_what_is_answered_reach_the_backend() {
    let mut kernel = furnished!();
    let (a, r) = (backend(1, A), backend(1, R));
    serving(&mut kernel, &[r]);
    let (request, answer) = conversations(&r, &GATEWAY).swap_remove(1);
    let port = own_port(&request, &r, 0);
    let [forward, _] = begin_through_tunnel(&mut kernel, &request, &r, port);
    let answer = answer.destination_port(port).ttl(60);
    // From a router on the way: the other node would not take its address.
    let error =
        came(to_client(&answer, &request).error_about([203, 0, 113, 254], UNREACHABLE, TOO_BIG, 1400));
    let out = answer.error_about(GATEWAY.address, UNREACHABLE, TOO_BIG, 1400).towards(&R);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress).flow(and_packet(forward, &error));
    check(&mut kernel, FromNetdev, &error.bytes(), expected);

    serving(&mut kernel, &[a]);
    let (request, answer) = conversations(&a, &CLIENT).swap_remove(4);
    let [forward, _] = begin_here(&mut kernel, &request, &a);
    let answer = answer.ttl(60);
    let error =
        came(to_client(&answer, &request).error_about([203, 0, 113, 254], UNREACHABLE, TOO_BIG, 1400));
    let out = answer.error_about([203, 0, 113, 254], UNREACHABLE, TOO_BIG, 1400).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress).flow(and_packet(forward, &error));
    check(&mut kernel, FromNetdev, &error.bytes(), expected);
}

#[test]
fn errors_about_what_is_asked_reach_the_client() {
    let mut kernel = furnished!();
    let (a, r) = (backend(1, A), backend(1, R));
    serving(&mut kernel, &[r]);
    let (request, _) = conversations(&r, &GATEWAY).swap_remove(1);
    let port = own_port(&request, &r, 0);
    let [_, mut reverse] = begin_through_tunnel(&mut kernel, &request, &r, port);
    let inside = through_tunnel(&request, &r, port).ttl(60);
    let asked = request.clone().ttl(60);
    // The backend itself, and its node.
    for (from, vni) in [(R.address, R.identity), (GATEWAY_OF_5.address, REMOTE_NODE)] {
        let error = inside.error_about(from, UNREACHABLE, 3, 0).macs(R.dst_mac, R.src_mac);
        let out = asked.error_about(VIP.address, UNREACHABLE, 3, 0).macs(R.dst_mac, R.src_mac).ttl(63);
        reverse = and_packet(reverse, &error);
        let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
            .flow(reverse)
            .origin(Some(Tunnel { identity: vni, underlay: NODE_5.address }));
        check(&mut kernel, FromOverlay, &error.bytes(), expected);
    }

    serving(&mut kernel, &[a]);
    let (request, _) = conversations(&a, &CLIENT).swap_remove(4);
    let [_, reverse] = begin_here(&mut kernel, &request, &a);
    let error = to_backend(&request, &a).error_about(A.address, UNREACHABLE, 3, 0).macs(A.src_mac, A.dst_mac);
    let out = request.error_about(UNDERLAY.address, UNREACHABLE, 3, 0).macs(A.src_mac, A.dst_mac).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(reverse, &error));
    check(&mut kernel, FromEndpoint, &error.bytes(), expected);
}

#[test]
fn the_nodes_own_connection_from_a_port_that_became_a_services_goes_on() {
    // First: programs, test runs and sockets are then of the same namespace.
    if !namespace::enter() {
        return;
    }
    let mut kernel = furnished!();
    let listener = TcpListener::bind((Ipv4Addr::from(UNDERLAY.address), 0)).expect("listen");
    let server = listener.local_addr().expect("an address");
    let stream = TcpStream::connect(server).expect("connect");
    let port = stream.local_addr().expect("an address").port();
    serving(&mut kernel, &[backend(1, A)]);
    for port in [port, server.port()] {
        let (word, bit) = service_port_bit(TCP, port);
        kernel.set(map_name::SERVICE_PORTS, &word, &bit);
        let key = FrontendKey { address: [0; 4], port_be: port.to_be_bytes(), protocol: TCP, pad: 0 };
        kernel.set(map_name::FRONTENDS_V4, &key, &FrontendEntry { service: SERVICE, kind: 2 });
    }
    let own = came(Frame::tcp(&UNDERLAY, &UNDERLAY, server.port(), port, 0x10));
    check(&mut kernel, FromNetdev, &own.bytes(), Expected::left(&own.bytes(), Ingress));
    // But who merely listens has lost the port to the service.
    let (word, bit) = service_port_bit(TCP, server.port());
    kernel.set(map_name::SERVICE_PORTS, &word, &bit);
    let request = came(Frame::tcp(&CLIENT, &UNDERLAY, 1000, server.port(), 0x10));
    begin_here(&mut kernel, &request, &backend(1, A));
}
