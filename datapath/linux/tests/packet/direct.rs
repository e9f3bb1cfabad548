//! Direct server return, both ends: the node that a client outside came to sends its packets on untouched, and the backend's
//! node answers the client.

use datapath_abi::{
    BACKEND_ELSEWHERE, DIRECT_DST_MARK, DIRECT_SRC_MARK,
    Direction::{Egress, Ingress},
    DropReason, FlowAction, FlowEntry, FlowKey, FrontendEntry, FrontendKey, MacBytes, NodeConfig,
    ServiceEntry, SourceKind, V4, epoch_shard_v4, flow_flags, map_name,
    node_flags::{LEGACY_HOST_ROUTING, NATIVE},
    service_flags,
};
use datapath_linux::object::Program::{
    FromEndpoint, FromHost, FromNetdev, FromOverlay, ToEndpoint, ToNetdev,
};
use datapath_packet::{flow_hash, masquerade_port};

use crate::{
    check::{Verdict::*, *},
    frame::{Frame, TCP, UDP},
    furnished,
    kernel::{Kernel, Tunnel},
    service::{Backend, Entry, PORT, SERVICE, VIP, backend, raise, serve, served, to_backend},
    world::*,
};

/// INTERNET, as it comes by the underlay and is sent to past the stack.
const CLIENT: Peer = Peer {
    source: (SourceKind::Underlay, 0),
    action: (FlowAction::Underlay, CONFIG.underlay_ifindex),
    ..INTERNET
};
/// The same, whose packets node 5 sends on.
const BY_NODE_5: Peer = Peer { source: (SourceKind::Node, 5), ..CLIENT };
const TUNNEL: Tunnel = Tunnel { identity: WORLD, underlay: NODE_5.address };
const UNREACHABLE: u8 = 3;
const TOO_BIG: u8 = 4;

/// A service of these backends, who answer themselves, also at each port 80 of the node.
fn serving(kernel: &mut Kernel, backends: &[Backend]) {
    serve(kernel, backends);
    for protocol in [TCP, UDP] {
        let key = FrontendKey { address: [0; 4], port_be: PORT.to_be_bytes(), protocol, pad: 0 };
        kernel.set(map_name::FRONTENDS_V4, &key, &FrontendEntry { service: SERVICE, kind: 2 });
    }
    let flags = service_flags::PRESENT | service_flags::DSR;
    let entry = ServiceEntry { table: 5 << 32 | 1, flags, ..ServiceEntry::default() };
    kernel.set(map_name::SERVICES, &SERVICE, &entry);
}

fn came(frame: Frame) -> Frame {
    frame.macs([0; 6], [2, 9, 9, 9, 9, 9])
}

/// The inner Ethernet addresses that name a backend, written here a second time.
fn naming(backend: &Backend) -> (MacBytes, MacBytes) {
    let [a, b, c, d] = backend.at.address;
    let [high, low] = backend.port.to_be_bytes();
    let ([d0, d1], [s0, s1, s2, s3]) = (DIRECT_DST_MARK, DIRECT_SRC_MARK);
    ([d0, d1, a, b, c, d], [s0, s1, s2, s3, high, low])
}

/// The frame as it goes through the tunnel.
fn sent_on(frame: &Frame, backend: &Backend) -> Frame {
    let (dst_mac, src_mac) = naming(backend);
    frame.clone().macs(dst_mac, src_mac)
}

/// What the client's node remembers.
fn entries(request: &Frame, r: &Backend) -> [Entry; 2] {
    let (dst_mac, src_mac) = naming(r);
    let [(key, forward), (reverse_key, reverse)] = pair(request, &CLIENT, &r.at);
    let epoch = epoch_of(CLIENT.address) + epoch_of(r.at.address);
    let (client, backend) = (epoch_shard_v4(CLIENT.address) as u16, epoch_shard_v4(r.at.address) as u16);
    let forward = FlowEntry {
        epoch,
        src_shard: client,
        dst_shard: backend,
        dst_mac,
        src_mac,
        rewrite_dst: r.at.address,
        rewrite_dst_port_be: r.port.to_be_bytes(),
        backend: r.id,
        ..forward
    };
    let reverse = FlowEntry { epoch, src_shard: backend, dst_shard: client, backend: r.id, ..reverse };
    [(key, forward), (reverse_key, reverse)]
}

/// What the backend's node remembers.
fn entries_there(request: &Frame, client: &Peer, a: &Backend) -> [Entry; 2] {
    served(request, client, a).map(|(key, entry)| (key, FlowEntry { backend: BACKEND_ELSEWHERE, ..entry }))
}

fn new_event(frame: &Frame, client: &Peer, to: &Peer) -> datapath_abi::Event {
    datapath_abi::Event {
        packets: 1,
        bytes: frame.len(),
        src_identity: client.identity,
        dst_identity: to.identity,
        action: to.action.0 as u8,
        ..event(frame, datapath_abi::EventKind::FlowNew, Ingress)
    }
}

#[track_caller]
fn begin(kernel: &mut Kernel, request: &Frame, r: &Backend) -> [Entry; 2] {
    let entries = entries(request, r);
    let expected = Expected::forwarded(Redirect, sent_on(request, r).bytes(), Ingress)
        .flow(entries[0])
        .flow(entries[1])
        .event(new_event(request, &CLIENT, &r.at));
    check(kernel, FromNetdev, &request.bytes(), expected);
    entries
}

#[track_caller]
fn begin_there(kernel: &mut Kernel, request: &Frame, a: &Backend) -> [Entry; 2] {
    let entries = entries_there(request, &BY_NODE_5, a);
    let out = to_backend(request, a).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(entries[0])
        .flow(entries[1])
        .event(new_event(request, &BY_NODE_5, &a.at))
        .origin(Some(TUNNEL));
    check(kernel, FromOverlay, &sent_on(request, a).bytes(), expected);
    entries
}

/// To somebody else's address that the service has, and to a port of node 5.
fn requests() -> Vec<Frame> {
    let frontends = [&VIP, &NODE_5];
    (frontends.into_iter())
        .flat_map(|at| {
            [
                Frame::syn(&CLIENT, at),
                Frame::udp(&CLIENT, at, 5000, PORT),
                Frame::udp(&CLIENT, at, 6000, PORT).checksummed(),
            ]
        })
        .collect()
}

fn answer_to(request: &Frame, a: &Backend) -> Frame {
    let port = u16::from_be_bytes(request.key().src_port_be);
    match request.key().protocol {
        TCP => Frame::tcp(&a.at, &CLIENT, a.port, port, 0x12),
        _ if request.bytes()[40..42] == [0; 2] => Frame::udp(&a.at, &CLIENT, a.port, port),
        _ => Frame::udp(&a.at, &CLIENT, a.port, port).checksummed(),
    }
}

fn as_frontend(answer: &Frame, request: &Frame) -> Frame {
    answer.clone().source(request.key().dst).source_port(PORT)
}

#[test]
fn the_clients_packets_go_on_as_they_are() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    for at in [&VIP, &UNDERLAY] {
        for request in [Frame::syn(&CLIENT, at), Frame::udp(&CLIENT, at, 5000, PORT).checksummed()].map(came)
        {
            let [forward, _] = begin(&mut kernel, &request, &r);
            let expected = Expected::forwarded(Redirect, sent_on(&request, &r).bytes(), Ingress)
                .flow(and_packet(forward, &request));
            check(&mut kernel, FromNetdev, &request.bytes(), expected);
            let told = kernel.run_for_tunnel_key(FromNetdev, &request.bytes());
            assert_eq!(told, Tunnel { identity: WORLD, underlay: NODE_5.address });
        }
    }
}

#[test]
fn the_backends_node_translates_and_answers() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    for request in requests() {
        let [forward, reverse] = begin_there(&mut kernel, &request, &a);
        let answer = answer_to(&request, &a);
        let out = as_frontend(&answer, &request).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(reverse, &answer));
        check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
        let out = to_backend(&request, &a).towards(&A).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
            .flow(and_packet(forward, &request))
            .origin(Some(TUNNEL));
        check(&mut kernel, FromOverlay, &sent_on(&request, &a).bytes(), expected);
        // Through two frontends the flow would be the same to the backend.
        for (key, _) in [forward, reverse] {
            kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &key);
        }
    }
}

#[test]
fn by_the_stack_at_the_backends_node() {
    let mut kernel = furnished!();
    kernel.set(map_name::CONFIG, &0u32, &NodeConfig { flags: LEGACY_HOST_ROUTING, ..CONFIG });
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    let request = requests().swap_remove(0);
    let client = Peer { action: (FlowAction::Stack, 0), ..BY_NODE_5 };
    let [forward, reverse] = entries_there(&request, &client, &a);
    let came = sent_on(&request, &a);
    let inside = to_backend(&came, &a);
    let expected = Expected::forwarded(Pass, inside.bytes(), Ingress)
        .flow(forward)
        .flow(reverse)
        .event(new_event(&request, &client, &a.at))
        .origin(Some(TUNNEL));
    check(&mut kernel, FromOverlay, &came.bytes(), expected);
    let handed = inside.clone().towards(&A);
    check(&mut kernel, FromHost, &inside.bytes(), Expected::forwarded(Redirect, handed.bytes(), Egress));
    check(&mut kernel, ToEndpoint, &handed.bytes(), Expected::forwarded(Pass, handed.bytes(), Ingress));
    let answer = answer_to(&request, &a);
    let expected = Expected::forwarded(Pass, answer.bytes(), Egress).flow(and_packet(reverse, &answer));
    check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
    kernel.ingress_ifindex = HERE;
    let out = as_frontend(&answer, &request);
    check(&mut kernel, ToNetdev, &answer.bytes(), Expected::left(&out.bytes(), Egress));
}

/// Whoever is of the fleet sees the node, and so does everybody where there is no tunnel.
#[test]
fn some_are_answered_by_the_way_they_came() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serving(&mut kernel, &[r]);
    let check_source = |kernel: &mut Kernel, request: Frame, source: V4| {
        kernel.run(FromNetdev, &request.bytes(), None);
        let entry = kernel.flow(&request.key()).expect("a flow");
        assert_eq!(
            (entry.flags, entry.rewrite_src),
            (flow_flags::REWRITE_SRC | flow_flags::REWRITE_DST, source)
        );
    };
    check_source(&mut kernel, came(Frame::syn(&NODE_5, &VIP)), GATEWAY.address);
    kernel.set(map_name::CONFIG, &0u32, &NodeConfig { flags: NATIVE, vxlan_ifindex: 0, ..CONFIG });
    check_source(&mut kernel, came(Frame::syn(&CLIENT, &VIP)), UNDERLAY.address);
    // A backend here needs nobody to send its answers on.
    serving(&mut kernel, &[backend(2, A)]);
    let request = came(Frame::udp(&CLIENT, &VIP, 5000, PORT));
    kernel.run(FromNetdev, &request.bytes(), None);
    assert_eq!(kernel.flow(&request.key()).expect("a flow").flags, flow_flags::REWRITE_DST);
}

#[test]
fn only_for_clients_outside_of_services_by_members() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    let sixth = Peer { address: [192, 0, 2, 6], ..NODE_5 };
    kernel.set(
        map_name::IPCACHE_V4,
        &sixth.address,
        &datapath_abi::IpcacheEntry { identity: REMOTE_NODE, node: 6 },
    );
    let refused = |kernel: &mut Kernel, frame: Frame, tunnel: Tunnel, reason: DropReason| {
        let expected =
            Expected::dropped(&frame, reason, Ingress).identities(tunnel.identity, 0).origin(Some(tunnel));
        check(kernel, FromOverlay, &frame.bytes(), expected);
    };
    let request = Frame::syn(&CLIENT, &VIP);
    let stranger = Tunnel { underlay: [192, 0, 2, 99], ..TUNNEL };
    refused(&mut kernel, sent_on(&request, &a), stranger, DropReason::UnknownNode);
    for vni in [REMOTE_NODE, R.identity, UNMANAGED] {
        let tunnel = Tunnel { identity: vni, ..TUNNEL };
        refused(&mut kernel, sent_on(&request, &a), tunnel, DropReason::ForgedIdentity);
    }
    // Somebody of the fleet, or another node's own address.
    for client in [&R, &B, &NODE_5, &UNDERLAY, &AT_6] {
        refused(&mut kernel, sent_on(&Frame::syn(client, &VIP), &a), TUNNEL, DropReason::InnerSource);
    }
    // What is no service's: another port, an address of nobody's, a port of another node than the one that sends, of this one.
    for frame in [
        Frame::tcp(&CLIENT, &VIP, 1000, 81, 2),
        Frame::syn(&CLIENT, &PARTNER),
        Frame::syn(&CLIENT, &A),
        Frame::syn(&CLIENT, &sixth),
        Frame::syn(&CLIENT, &UNDERLAY),
    ] {
        refused(&mut kernel, sent_on(&frame, &a), TUNNEL, DropReason::InnerSource);
    }
    // No backend here.
    refused(&mut kernel, sent_on(&request, &backend(1, R)), TUNNEL, DropReason::UnknownDestination);
    // Without the marks nobody outside is believed, also not where such a flow is known.
    let [forward, _] = begin_there(&mut kernel, &request, &a);
    refused(&mut kernel, request.clone().macs(R.dst_mac, R.src_mac), TUNNEL, DropReason::InnerSource);
    // Another node takes the flow over, if it is told to.
    let by_six = Peer { source: (SourceKind::Node, 6), ..BY_NODE_5 };
    let [(key, moved), _] = entries_there(&request, &by_six, &a);
    let twice = FlowEntry { packets: 2, bytes: 2 * forward.1.bytes, ..moved };
    let out = to_backend(&request, &a).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow((key, twice))
        .origin(Some(Tunnel { underlay: sixth.address, ..TUNNEL }));
    check(&mut kernel, FromOverlay, &sent_on(&request, &a).bytes(), expected);
    // A service whose backends do not answer themselves has none of this.
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &key);
    let entry = ServiceEntry { table: 5 << 32 | 1, flags: service_flags::PRESENT, ..ServiceEntry::default() };
    kernel.set(map_name::SERVICES, &SERVICE, &entry);
    refused(&mut kernel, sent_on(&request, &a), TUNNEL, DropReason::InnerSource);
}

#[test]
fn another_backend_is_another_flow() {
    let mut kernel = furnished!();
    let (a, b) = (backend(1, A), backend(2, B));
    serving(&mut kernel, &[a]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    let [forward, _] = begin_there(&mut kernel, &request, &a);
    let [(key, moved), reverse] = entries_there(&request, &BY_NODE_5, &b);
    let moved = FlowEntry { packets: 2, bytes: 2 * forward.1.bytes, ..moved };
    let expected =
        Expected::forwarded(Redirect, to_backend(&request, &b).towards(&B).ttl(63).bytes(), Ingress)
            .flow((key, moved))
            .flow(reverse)
            .origin(Some(TUNNEL));
    check(&mut kernel, FromOverlay, &sent_on(&request, &b).bytes(), expected);
}

#[test]
fn both_ends_decide_again() {
    let mut kernel = furnished!();
    let again = |(key, entry): Entry| (key, FlowEntry { epoch: entry.epoch + 1, ..entry });
    // The client's node: the flow keeps its backend, whatever the table and the mode say now.
    let (r, other) = (backend(1, R), backend(2, UNKNOWN_AT_5));
    serving(&mut kernel, &[r]);
    let syn = came(Frame::syn(&CLIENT, &VIP));
    let [forward, reverse] = begin(&mut kernel, &syn, &r);
    serve(&mut kernel, &[other]);
    raise(&mut kernel, R.address);
    let ack = came(Frame::ack(&CLIENT, &VIP));
    let expected = Expected::forwarded(Redirect, sent_on(&ack, &r).bytes(), Ingress)
        .flow(and_packet(again(forward), &ack))
        .flow(again(reverse));
    check(&mut kernel, FromNetdev, &ack.bytes(), expected);
    // The client has ended it: what begins in its place gets what the table says.
    let fin = came(Frame::fin(&CLIENT, &VIP));
    kernel.run(FromNetdev, &fin.bytes(), None);
    kernel.run(FromNetdev, &syn.bytes(), None);
    let entry = kernel.flow(&syn.key()).expect("a flow");
    assert_eq!((entry.backend, entry.rewrite_src), (other.id, GATEWAY.address));

    // The backend's node, by an answer; with the half that says by which node, and without.
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    let [forward, reverse] = begin_there(&mut kernel, &request, &a);
    raise(&mut kernel, A.address);
    let answer = answer_to(&request, &a);
    let out = as_frontend(&answer, &request).ttl(63);
    let reverse = and_packet(again(reverse), &answer);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(again(forward)).flow(reverse);
    check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &forward.0);
    let (key, entry) = reverse;
    kernel.set(map_name::FLOWS_V4, &key, &FlowEntry { epoch: entry.epoch - 1, ..entry });
    let (forward_key, entry) = again(forward);
    let unknown = FlowEntry { packets: 0, bytes: 0, source: 0, ..entry };
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress)
        .flow((forward_key, unknown))
        .flow(and_packet(reverse, &answer));
    check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
}

#[test]
fn a_flow_that_came_by_the_gateway_goes_on_so() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let (syn, ack) = (came(Frame::syn(&CLIENT, &VIP)), came(Frame::ack(&CLIENT, &VIP)));
    kernel.run(FromNetdev, &syn.bytes(), None);
    serving(&mut kernel, &[r]);
    raise(&mut kernel, R.address);
    kernel.run(FromNetdev, &ack.bytes(), None);
    let hash = flow_hash(&to_backend(&syn, &r).key());
    let port = masquerade_port(hash, CONFIG.masquerade_port_min, CONFIG.masquerade_port_max, 0);
    let entry = kernel.flow(&syn.key()).expect("a flow");
    assert_eq!(
        (entry.packets, entry.rewrite_src, entry.rewrite_src_port_be),
        (2, GATEWAY.address, port.to_be_bytes())
    );
}

#[test]
fn fragments_follow_their_first() {
    let mut kernel = furnished!();
    let (a, r) = (backend(1, A), backend(1, R));
    serving(&mut kernel, &[r]);
    let first = Frame::udp(&CLIENT, &VIP, 5000, PORT).checksummed().fragment(0, true);
    let rest = Frame::ipv4(&CLIENT, &VIP, UDP, &[7; 32]).fragment(2, false);
    let [forward, _] = begin(&mut kernel, &came(first.clone()), &r);
    let expected =
        Expected::forwarded(Redirect, sent_on(&rest, &r).bytes(), Ingress).flow(and_packet(forward, &rest));
    check(&mut kernel, FromNetdev, &came(rest.clone()).bytes(), expected);

    let mut kernel = furnished!();
    serving(&mut kernel, &[a]);
    let [forward, _] = begin_there(&mut kernel, &first, &a);
    let out = rest.clone().destination(A.address).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(and_packet(forward, &rest))
        .origin(Some(TUNNEL));
    check(&mut kernel, FromOverlay, &sent_on(&rest, &a).bytes(), expected);
}

#[test]
fn errors_about_what_is_answered_reach_the_backend() {
    let mut kernel = furnished!();
    let (a, r) = (backend(1, A), backend(1, R));
    let router = [203, 0, 113, 254];
    // They come to whom the client asked, which sends them on.
    serving(&mut kernel, &[r]);
    let request = came(Frame::udp(&CLIENT, &VIP, 5000, PORT));
    let [forward, _] = begin(&mut kernel, &request, &r);
    let seen = as_frontend(&answer_to(&request, &r), &request).ttl(60);
    let error = came(seen.error_about(router, UNREACHABLE, TOO_BIG, 1400));
    let expected =
        Expected::forwarded(Redirect, sent_on(&error, &r).bytes(), Ingress).flow(and_packet(forward, &error));
    check(&mut kernel, FromNetdev, &error.bytes(), expected);

    let mut kernel = furnished!();
    serving(&mut kernel, &[a]);
    let [forward, _] = begin_there(&mut kernel, &request, &a);
    let answer = answer_to(&request, &a).ttl(60);
    let error = as_frontend(&answer, &request).error_about(router, UNREACHABLE, TOO_BIG, 1400);
    let out = answer.error_about(router, UNREACHABLE, TOO_BIG, 1400).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(and_packet(forward, &error))
        .origin(Some(TUNNEL));
    check(&mut kernel, FromOverlay, &sent_on(&error, &a).bytes(), expected);
    // Nobody of the fleet tells of it so.
    let forged = as_frontend(&answer, &request).error_about(B.address, UNREACHABLE, TOO_BIG, 1400);
    let forged = sent_on(&forged, &a);
    let expected = Expected::dropped(&forged, DropReason::InnerSource, Ingress)
        .identities(WORLD, 0)
        .origin(Some(TUNNEL));
    check(&mut kernel, FromOverlay, &forged.bytes(), expected);
}

#[test]
fn after_its_endpoint_has_gone_nothing_passes() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serving(&mut kernel, &[a]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    begin_there(&mut kernel, &request, &a);
    kernel.remove::<V4, datapath_abi::EndpointEntry>(map_name::ENDPOINTS_V4, &A.address);
    raise(&mut kernel, A.address);
    let expected = Expected::dropped(&sent_on(&request, &a), DropReason::UnknownDestination, Ingress)
        .identities(WORLD, 0)
        .origin(Some(TUNNEL));
    check(&mut kernel, FromOverlay, &sent_on(&request, &a).bytes(), expected);
}
