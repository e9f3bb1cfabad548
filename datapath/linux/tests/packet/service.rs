//! Services: the frontend outside, one of its backends inside; clients of this node, and the node itself.

use datapath_abi::{
    AffinityEntry, AffinityKey, BLOCK_SLOTS, BackendEntry,
    Direction::{Egress, Ingress},
    DropReason, ERRORS_PER_WINDOW, FlowEntry, FlowKey, FrontendEntry, FrontendKey, NodeConfig, ServiceEntry,
    SlotBlock, SlotsKey, SourceKind, V4, backend_flags, counter_slot, epoch_shard_v4, flow_flags, map_name,
    node_flags, service_flags, service_port_bit,
};
use datapath_linux::object::Program::{FromEndpoint, FromHost, FromNetdev, FromOverlay, ToEndpoint};
use datapath_packet::{flow_hash, masquerade_port, slot_of};

use crate::{
    check::{Verdict::*, *},
    frame::{Frame, SCTP, TCP, UDP},
    furnished,
    kernel::Kernel,
    namespace,
    outside::{flood, stay_on_this_cpu},
    world::*,
};

pub type Entry = (FlowKey<V4>, FlowEntry);

/// The frontend that frames are for: in no map but that of frontends.
pub const VIP: Peer = Peer { address: [10, 201, 0, 1], ..INTERNET };
pub const SERVICE: u32 = 7;
/// Of all frontends here, and what frames go to (`Frame::syn`).
pub const PORT: u16 = 80;

/// A backend by its number.
#[derive(Clone, Copy)]
pub struct Backend {
    pub id: u32,
    pub at: Peer,
    pub port: u16,
}

pub const fn backend(id: u32, at: Peer) -> Backend {
    Backend { id, at, port: 8080 }
}

impl Backend {
    pub fn entry(&self) -> BackendEntry<V4> {
        BackendEntry {
            service: SERVICE,
            address: self.at.address,
            port_be: self.port.to_be_bytes(),
            weight: 1,
            ..BackendEntry::default()
        }
    }
}

/// Writes backends, a table with a slot for each, and the service.
pub fn serve(kernel: &mut Kernel, backends: &[Backend]) {
    for protocol in [TCP, UDP, SCTP] {
        frontend(kernel, VIP.address, protocol);
    }
    for backend in backends {
        kernel.set(map_name::BACKENDS_V4, &backend.id, &backend.entry());
    }
    let ids: Vec<u32> = backends.iter().map(|backend| backend.id).collect();
    choose_among(kernel, 5, &ids);
}

pub fn frontend(kernel: &mut Kernel, address: V4, protocol: u8) {
    let key = FrontendKey { address, port_be: PORT.to_be_bytes(), protocol, pad: 0 };
    kernel.set(map_name::FRONTENDS_V4, &key, &FrontendEntry { service: SERVICE, kind: 0 });
    let (word, bit) = service_port_bit(protocol, PORT);
    kernel.set(map_name::SERVICE_PORTS, &word, &bit);
}

/// Switches the service to a table with a slot for each of these.
pub fn choose_among(kernel: &mut Kernel, table: u32, ids: &[u32]) {
    for (block, ids) in (0..).zip(ids.chunks(BLOCK_SLOTS as usize)) {
        let mut slots = [0; BLOCK_SLOTS as usize];
        slots[..ids.len()].copy_from_slice(ids);
        kernel.set(map_name::SLOTS, &SlotsKey { table, block }, &SlotBlock { slots });
    }
    let table = u64::from(table) << 32 | ids.len() as u64;
    let entry = ServiceEntry { table, flags: service_flags::PRESENT, ..ServiceEntry::default() };
    kernel.set(map_name::SERVICES, &SERVICE, &entry);
}

pub fn remove(kernel: &mut Kernel, backend: &Backend) {
    kernel.set(map_name::BACKENDS_V4, &backend.id, &BackendEntry::<V4>::default());
}

pub fn raise(kernel: &mut Kernel, address: V4) {
    kernel.set(map_name::EPOCHS, &epoch_shard_v4(address), &(epoch_of(address) + 1));
}

/// The frame, which goes to the frontend, as its backend gets it.
pub fn to_backend(frame: &Frame, backend: &Backend) -> Frame {
    frame.clone().destination(backend.at.address).destination_port(backend.port)
}

/// What a backend answers, as its client gets it.
fn from_frontend(frame: &Frame) -> Frame {
    frame.clone().source(VIP.address).source_port(PORT)
}

/// The two entries of a client's flow after its first packet.
pub fn served(frame: &Frame, client: &Peer, backend: &Backend) -> [Entry; 2] {
    let [(_, forward), (back_key, reverse)] = pair(&to_backend(frame, backend), client, &backend.at);
    let key = frame.key();
    let forward = FlowEntry {
        flags: flow_flags::REWRITE_DST,
        rewrite_dst: backend.at.address,
        rewrite_dst_port_be: backend.port.to_be_bytes(),
        backend: backend.id,
        ..forward
    };
    let reverse = FlowEntry {
        flags: flow_flags::REPLY | flow_flags::REWRITE_SRC,
        rewrite_src: key.dst,
        rewrite_src_port_be: key.dst_port_be,
        backend: backend.id,
        ..reverse
    };
    [(key, forward), (back_key, reverse)]
}

fn new_event(frame: &Frame, client: &Peer, backend: &Backend) -> datapath_abi::Event {
    datapath_abi::Event {
        packets: 1,
        bytes: frame.len(),
        src_identity: client.identity,
        dst_identity: backend.at.identity,
        action: backend.at.action.0 as u8,
        ..event(frame, datapath_abi::EventKind::FlowNew, Egress)
    }
}

/// The frame begins a flow of A's, and goes to the backend so.
#[track_caller]
fn begin(kernel: &mut Kernel, frame: &Frame, backend: &Backend) -> [Entry; 2] {
    let [forward, reverse] = served(frame, &A, backend);
    let expected = Expected::forwarded(Redirect, delivered(frame, backend).bytes(), Egress)
        .flow(forward)
        .flow(reverse)
        .event(new_event(frame, &A, backend));
    check(kernel, FromEndpoint, &frame.bytes(), expected);
    [forward, reverse]
}

/// What A sends to the frontend, as it leaves.
fn delivered(frame: &Frame, backend: &Backend) -> Frame {
    let out = to_backend(frame, backend).towards(&backend.at);
    if backend.at.action.0 == datapath_abi::FlowAction::Local { out.ttl(63) } else { out }
}

/// Frames of A to the frontend, and what a backend answers to each.
fn conversations(backend: &Backend) -> Vec<(Frame, Frame)> {
    let (at, port) = (&backend.at, backend.port);
    vec![
        (Frame::syn(&A, &VIP), Frame::tcp(at, &A, port, 1000, 0x12)),
        (Frame::udp(&A, &VIP, 5000, PORT), Frame::udp(at, &A, port, 5000)),
        (Frame::udp(&A, &VIP, 5001, PORT).checksummed(), Frame::udp(at, &A, port, 5001).checksummed()),
    ]
}

#[test]
fn to_a_backend_here() {
    let mut kernel = furnished!();
    let b = backend(1, B);
    serve(&mut kernel, &[b]);
    for (request, _) in conversations(&b) {
        let [forward, _] = begin(&mut kernel, &request, &b);
        let expected = Expected::forwarded(Redirect, delivered(&request, &b).bytes(), Egress)
            .flow(and_packet(forward, &request));
        check(&mut kernel, FromEndpoint, &request.bytes(), expected);
    }
}

#[test]
fn a_backend_here_answers_as_the_service() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serve(&mut kernel, &[a]);
    let request = Frame::syn(&B, &VIP);
    let entries = served(&request, &B, &a);
    entries.iter().for_each(|(key, entry)| kernel.set(map_name::FLOWS_V4, key, entry));
    let answer = Frame::tcp(&A, &B, a.port, 1000, 0x12);
    let out = from_frontend(&answer).towards(&B).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(entries[1], &answer));
    check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
}

#[test]
fn to_a_backend_of_another_node_and_back() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    for (request, answer) in conversations(&r) {
        let [_, reverse] = begin(&mut kernel, &request, &r);
        let out = from_frontend(&answer).towards(&A).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
            .flow(and_packet(reverse, &answer))
            .origin(Some(tunnel_from(&R)));
        check(&mut kernel, FromOverlay, &answer.bytes(), expected);
    }
}

#[test]
fn to_a_backend_that_is_this_node_and_back() {
    let mut kernel = furnished!();
    let host = backend(1, GATEWAY);
    serve(&mut kernel, &[host]);
    for (request, answer) in conversations(&host) {
        let [_, reverse] = begin(&mut kernel, &request, &host);
        let out = from_frontend(&answer).towards(&A);
        let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(reverse, &answer));
        check(&mut kernel, FromHost, &answer.bytes(), expected);
        // At A's device it belongs to that flow, and makes none of its own.
        check(&mut kernel, ToEndpoint, &out.bytes(), Expected::forwarded(Pass, out.bytes(), Ingress));
    }
}

/// From the node's stack to the frontend.
#[track_caller]
fn begin_from_host(kernel: &mut Kernel, frame: &Frame, backend: &Backend) -> [Entry; 2] {
    let [forward, reverse] = served(frame, &GATEWAY, backend);
    let out = to_backend(frame, backend).towards(&backend.at);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress)
        .flow(forward)
        .flow(reverse)
        .event(new_event(frame, &GATEWAY, backend));
    check(kernel, FromHost, &frame.bytes(), expected);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(forward, frame));
    check(kernel, FromHost, &frame.bytes(), expected);
    [forward, reverse]
}

#[test]
fn from_the_node_to_a_backend_here_and_back() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serve(&mut kernel, &[a]);
    let request = Frame::syn(&GATEWAY, &VIP);
    let [_, reverse] = begin_from_host(&mut kernel, &request, &a);
    // At A's device it belongs to that flow, and makes none of its own.
    let out = to_backend(&request, &a).towards(&A).bytes();
    check(&mut kernel, ToEndpoint, &out, Expected::forwarded(Pass, out.clone(), Ingress));
    let answer = Frame::tcp(&A, &GATEWAY, a.port, 1000, 0x12);
    let out = from_frontend(&answer).towards(&GATEWAY);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(reverse, &answer));
    check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
}

#[test]
fn from_the_node_to_a_backend_of_another_and_back() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let request = Frame::udp(&GATEWAY, &VIP, 5000, PORT).checksummed();
    let [_, reverse] = begin_from_host(&mut kernel, &request, &r);
    let answer = Frame::udp(&R, &GATEWAY, r.port, 5000).checksummed();
    let out = from_frontend(&answer).towards(&GATEWAY);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(and_packet(reverse, &answer))
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &answer.bytes(), expected);
}

/// The entries of a flow that its client's backend is the client itself: each sees the gateway.
fn hairpin(frame: &Frame, a: &Backend, port: u16) -> [Entry; 2] {
    let [(key, forward), (_, reverse)] = served(frame, &A, a);
    let forward = FlowEntry {
        flags: forward.flags | flow_flags::REWRITE_SRC,
        rewrite_src: GATEWAY.address,
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

#[test]
fn an_endpoint_reaches_itself_by_the_service() {
    let mut kernel = furnished!();
    let a = backend(1, A);
    serve(&mut kernel, &[a]);
    for (request, answer) in conversations(&a) {
        let hash = flow_hash(&to_backend(&request, &a).key());
        let port = masquerade_port(hash, CONFIG.masquerade_port_min, CONFIG.masquerade_port_max, 0);
        let [forward, reverse] = hairpin(&request, &a, port);
        let out = to_backend(&request, &a).source(GATEWAY.address).source_port(port).towards(&A).ttl(63);
        let expected = Expected::forwarded(Redirect, out.bytes(), Egress)
            .flow(forward)
            .flow(reverse)
            .event(new_event(&request, &A, &a));
        check(&mut kernel, FromEndpoint, &request.bytes(), expected);

        let answer = answer.destination(GATEWAY.address).destination_port(port);
        let request_port = u16::from_be_bytes(request.key().src_port_be);
        let back = from_frontend(&answer).destination(A.address).destination_port(request_port);
        let back = back.towards(&A).ttl(63);
        let expected = Expected::forwarded(Redirect, back.bytes(), Egress).flow(and_packet(reverse, &answer));
        check(&mut kernel, FromEndpoint, &answer.bytes(), expected);

        // Decided again from either side, it keeps its port.
        let stale = |(key, entry): Entry| (key, FlowEntry { epoch: entry.epoch - 1, ..entry });
        let (key, entry) = stale(and_packet(reverse, &answer));
        kernel.set(map_name::FLOWS_V4, &key, &entry);
        let entry = FlowEntry { epoch: entry.epoch + 1, ..entry };
        let expected =
            Expected::forwarded(Redirect, back.bytes(), Egress).flow(and_packet((key, entry), &answer));
        check(&mut kernel, FromEndpoint, &answer.bytes(), expected);
        let (key, entry) = stale(forward);
        kernel.set(map_name::FLOWS_V4, &key, &entry);
        let entry = FlowEntry { epoch: entry.epoch + 1, ..entry };
        let expected =
            Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet((key, entry), &request));
        check(&mut kernel, FromEndpoint, &request.bytes(), expected);
    }
}

/// Whichever half of it a full table forgets, or both: an endpoint that speaks with itself goes on, by the same port.
#[test]
fn what_a_full_table_forgets_of_an_endpoint_that_reaches_itself_goes_on() {
    let mut kernel = furnished!();
    stay_on_this_cpu();
    let a = backend(1, A);
    serve(&mut kernel, &[a]);
    let syn = Frame::syn(&A, &VIP);
    assert_eq!(kernel.run(FromEndpoint, &syn.bytes(), None).code, Redirect as u32);
    let request = Frame::tcp(&A, &VIP, 1000, PORT, 0x10);
    let entry = kernel.flow(&syn.key()).expect("the flow is known");
    let (key, back_key) = (syn.key(), entry.reverse_key(&syn.key()));
    let answer = Frame::tcp(&A, &GATEWAY, a.port, u16::from_be_bytes(entry.rewrite_src_port_be), 0x10);
    let asked = kernel.run(FromEndpoint, &request.bytes(), None).bytes;
    let answered = from_frontend(&answer).destination(A.address).destination_port(1000).towards(&A).ttl(63);
    let forget = |kernel: &mut Kernel, key: &FlowKey<V4>| {
        kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, key);
    };

    // What nobody has used goes first.
    flood(&mut kernel, &back_key);
    assert!(kernel.flow(&key).is_some(), "what is in use stays");
    for gone in [&[][..], &[back_key], &[key], &[key, back_key]] {
        gone.iter().for_each(|key| forget(&mut kernel, key));
        wait_for_the_next_second();
        // Of what is left the next packet is, whoever sends it.
        if gone != [key] {
            let ran = kernel.run(FromEndpoint, &request.bytes(), None);
            assert_eq!((ran.code, &ran.bytes), (Redirect as u32, &asked), "{gone:?}");
        }
        let ran = kernel.run(FromEndpoint, &answer.bytes(), None);
        assert_eq!((ran.code, ran.bytes), (Redirect as u32, answered.bytes()), "{gone:?}");
        assert!(kernel.flow(&key).is_some() && kernel.flow(&back_key).is_some(), "{gone:?}");
    }
}

#[test]
fn to_a_backend_outside_and_back() {
    // First: programs, test runs and routes are then of the same namespace.
    if !namespace::enter() {
        return;
    }
    let mut kernel = furnished!();
    let underlay_ifindex = namespace::UNDERLAY_IFINDEX;
    let config = NodeConfig { flags: node_flags::MASQUERADE, underlay_ifindex, ..CONFIG };
    kernel.set(map_name::CONFIG, &0u32, &config);
    let outside = backend(
        1,
        Peer {
            source: (SourceKind::Underlay, 0),
            action: (datapath_abi::FlowAction::Underlay, namespace::UNDERLAY_IFINDEX),
            ..INTERNET
        },
    );
    serve(&mut kernel, &[outside]);
    let (request, answer) = conversations(&outside).swap_remove(0);
    let hash = flow_hash(&to_backend(&request, &outside).key());
    let port = masquerade_port(hash, CONFIG.masquerade_port_min, CONFIG.masquerade_port_max, 0);
    let [forward, reverse] = hairpin(&request, &outside, port);
    let forward = (forward.0, FlowEntry { rewrite_src: UNDERLAY.address, ..forward.1 });
    let reverse = (forward.1.reverse_key(&forward.0), reverse.1);
    let out = to_backend(&request, &outside).source(UNDERLAY.address).source_port(port).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress)
        .flow(forward)
        .flow(reverse)
        .event(new_event(&request, &A, &outside));
    check(&mut kernel, FromEndpoint, &request.bytes(), expected);

    let answer = answer.destination(UNDERLAY.address).destination_port(port).macs([0; 6], [2, 9, 9, 9, 9, 9]);
    let back = from_frontend(&answer).destination(A.address).destination_port(1000).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, back.bytes(), Ingress).flow(and_packet(reverse, &answer));
    check(&mut kernel, FromNetdev, &answer.bytes(), expected);
    // The half that sends is gone: the answer brings it back, with backend and port.
    kernel.remove::<FlowKey<V4>, FlowEntry>(map_name::FLOWS_V4, &forward.0);
    let (key, entry) = and_packet(reverse, &answer);
    kernel.set(map_name::FLOWS_V4, &key, &FlowEntry { epoch: entry.epoch - 1, ..entry });
    let unsent = FlowEntry { packets: 0, bytes: 0, tcp_flags: 0, ..forward.1 };
    let expected = Expected::forwarded(Redirect, back.bytes(), Ingress)
        .flow(and_packet((key, entry), &answer))
        .flow((forward.0, unsent));
    check(&mut kernel, FromNetdev, &answer.bytes(), expected);
}

#[test]
fn a_port_of_the_node_is_a_frontend_for_endpoints_too() {
    let mut kernel = furnished!();
    let b = backend(1, B);
    serve(&mut kernel, &[b]);
    frontend(&mut kernel, [0; 4], TCP);
    for (own, port) in [(GATEWAY, 1000), (UNDERLAY, 1001)] {
        begin(&mut kernel, &Frame::syn(&A, &own).source_port(port), &b);
    }
}

#[test]
fn without_backends_the_client_is_refused() {
    let mut kernel = furnished!();
    serve(&mut kernel, &[]);
    let refused = |frame: &Frame, told: &Frame, identity: u32| {
        Expected::refused(frame, told, DropReason::NoBackend, Egress).identities(identity, 0)
    };
    let syn = Frame::syn(&A, &VIP);
    check(&mut kernel, FromEndpoint, &syn.bytes(), refused(&syn, &syn.reset(0, 1, true), A.identity));
    let ack = Frame::ack(&A, &VIP)
        .payload(&[&[3, 232, 0, 80, 0, 0, 0, 5, 0, 0, 0, 9, 0x50, 16][..], &[0; 20]].concat());
    check(&mut kernel, FromEndpoint, &ack.bytes(), refused(&ack, &ack.reset(9, 0, false), A.identity));
    let datagram = Frame::udp(&A, &VIP, 5000, PORT);
    let told = datagram.refused(3, 3, 0, VIP.address);
    check(&mut kernel, FromEndpoint, &datagram.bytes(), refused(&datagram, &told, A.identity));
    // The node itself is told as well.
    let syn = Frame::syn(&GATEWAY, &VIP);
    let told = syn.reset(0, 1, true).towards(&GATEWAY);
    check(&mut kernel, FromHost, &syn.bytes(), refused(&syn, &told, 0));
    // A reset is not answered.
    let rst = Frame::tcp(&A, &VIP, 1000, PORT, 4);
    let expected = Expected::dropped(&rst, DropReason::NoBackend, Egress).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &rst.bytes(), expected);
}

#[test]
fn no_flood_is_answered_with_one() {
    let mut kernel = furnished!();
    serve(&mut kernel, &[]);
    let syn = Frame::syn(&A, &VIP).bytes();
    let told = (0..4 * ERRORS_PER_WINDOW)
        .filter(|_| kernel.run(FromEndpoint, &syn, None).code == Redirect as u32)
        .count() as u32;
    // The window may end in between, on a slow machine more than once.
    assert!(told >= ERRORS_PER_WINDOW, "{told}");
    let dropped = kernel.snapshot().counters[&counter_slot(DropReason::NoBackend as u8, Egress)];
    assert_eq!(dropped.0, u64::from(4 * ERRORS_PER_WINDOW));
}

#[test]
fn slots_decide() {
    let mut kernel = furnished!();
    // More than a block of slots.
    let backends: Vec<Backend> = (1..=240).map(|id| Backend { id, at: B, port: 8000 + id as u16 }).collect();
    serve(&mut kernel, &backends);
    // Few enough that the small table of this test forgets none: a CPU takes 128 entries at once.
    for port in 2000..2050 {
        let frame = Frame::udp(&A, &VIP, port, PORT);
        let (block, place) = slot_of(flow_hash(&frame.key()), backends.len() as u32);
        begin(&mut kernel, &frame, &backends[(block * BLOCK_SLOTS + place) as usize]);
    }
}

/// The service keeps clients for a minute, by this table.
fn keep_clients(kernel: &mut Kernel, table: u32, backends: &[Backend]) {
    let ids: Vec<u32> = backends.iter().map(|backend| backend.id).collect();
    choose_among(kernel, table, &ids);
    let entry = ServiceEntry {
        table: u64::from(table) << 32 | ids.len() as u64,
        flags: service_flags::PRESENT,
        affinity_seconds: 60,
        ..ServiceEntry::default()
    };
    kernel.set(map_name::SERVICES, &SERVICE, &entry);
}

/// Which backend A's flow from a port gets.
fn chosen(kernel: &mut Kernel, port: u16) -> u32 {
    let frame = Frame::udp(&A, &VIP, port, PORT);
    assert_eq!(kernel.run(FromEndpoint, &frame.bytes(), None).code, Redirect as u32);
    kernel.flow(&frame.key()).expect("a flow").backend
}

fn of_a() -> AffinityKey {
    AffinityKey { client: u32::from_be_bytes(A.address).into(), service: SERVICE, pad: 0 }
}

#[test]
fn with_affinity_a_client_keeps_its_backend() {
    let mut kernel = furnished!();
    let backends: Vec<Backend> = (1..=9).map(|id| Backend { id, at: B, port: 8000 + id as u16 }).collect();
    serve(&mut kernel, &backends);
    keep_clients(&mut kernel, 5, &backends);
    let first = chosen(&mut kernel, 2000);
    for port in 2001..2050 {
        assert_eq!(chosen(&mut kernel, port), first);
    }
    // Whatever becomes of the table.
    let others: Vec<Backend> = backends.iter().copied().filter(|backend| backend.id != first).collect();
    keep_clients(&mut kernel, 6, &others);
    assert_eq!(chosen(&mut kernel, 2050), first);
    // Each of its flows is a word of it: it was heard of just now.
    let entry: AffinityEntry = kernel.get(map_name::AFFINITY, &of_a()).expect("an entry");
    assert!(coarse_ns() - entry.last_seen_ns < 60_000_000_000, "{entry:?}");
}

/// Silent for longer than the service says, it gets what the table says now; and keeps that.
#[test]
fn affinity_ends_with_silence() {
    let mut kernel = furnished!();
    let (b, r) = (backend(1, B), backend(2, R));
    serve(&mut kernel, &[b, r]);
    keep_clients(&mut kernel, 5, &[b]);
    assert_eq!(chosen(&mut kernel, 2000), b.id);
    keep_clients(&mut kernel, 6, &[r]);
    for (silent_seconds, expected) in [(30, b.id), (61, r.id), (0, r.id)] {
        let entry: AffinityEntry = kernel.get(map_name::AFFINITY, &of_a()).expect("an entry");
        let last_seen_ns = entry.last_seen_ns - silent_seconds * 1_000_000_000;
        kernel.set(map_name::AFFINITY, &of_a(), &AffinityEntry { last_seen_ns, ..entry });
        assert_eq!(chosen(&mut kernel, 2001 + silent_seconds as u16), expected);
    }
}

#[test]
fn affinity_ends_when_the_backend_takes_no_new_flows() {
    for backend_flags in [backend_flags::TERMINATING, backend_flags::UNHEALTHY] {
        let mut kernel = furnished!();
        let (b, r) = (backend(1, B), backend(2, R));
        serve(&mut kernel, &[b, r]);
        keep_clients(&mut kernel, 5, &[b]);
        assert_eq!(chosen(&mut kernel, 2000), b.id);
        keep_clients(&mut kernel, 6, &[r]);
        kernel.set(map_name::BACKENDS_V4, &b.id, &BackendEntry { flags: backend_flags, ..b.entry() });
        assert_eq!(chosen(&mut kernel, 2001), r.id);
        // A flow that it has goes on.
        raise(&mut kernel, B.address);
        assert_eq!(chosen(&mut kernel, 2000), b.id);
        // Gone, and its number another service's.
        kernel.set(map_name::BACKENDS_V4, &r.id, &BackendEntry { service: SERVICE + 1, ..r.entry() });
        kernel.set(map_name::BACKENDS_V4, &b.id, &b.entry());
        keep_clients(&mut kernel, 7, &[b]);
        assert_eq!(chosen(&mut kernel, 2002), b.id);
    }
}

#[test]
fn a_flow_keeps_its_backend_when_the_table_changes() {
    let mut kernel = furnished!();
    let (b, r) = (backend(1, B), backend(2, R));
    serve(&mut kernel, &[b]);
    let frame = Frame::syn(&A, &VIP);
    let entries = begin(&mut kernel, &frame, &b);
    kernel.set(map_name::BACKENDS_V4, &r.id, &r.entry());
    let leaving = BackendEntry { flags: backend_flags::TERMINATING, ..b.entry() };
    kernel.set(map_name::BACKENDS_V4, &b.id, &leaving);
    choose_among(&mut kernel, 6, &[r.id]);
    // Decided again, on its way out or not.
    raise(&mut kernel, B.address);
    let ack = Frame::ack(&A, &VIP);
    let again = |(key, entry): Entry| (key, FlowEntry { epoch: entry.epoch + 1, ..entry });
    let expected = Expected::forwarded(Redirect, delivered(&ack, &b).bytes(), Egress)
        .flow(and_packet(again(entries[0]), &ack))
        .flow(again(entries[1]));
    check(&mut kernel, FromEndpoint, &ack.bytes(), expected);
    // What is new, also in its place, goes to the other.
    raise(&mut kernel, A.address);
    let new = served(&frame, &A, &r);
    let counted = and_packet(and_packet(again(again(entries[0])), &ack), &frame).1;
    let moved = FlowEntry {
        packets: counted.packets,
        bytes: counted.bytes,
        tcp_flags: counted.tcp_flags,
        epoch: new[0].1.epoch + 1,
        ..new[0].1
    };
    let expected = Expected::forwarded(Redirect, delivered(&frame, &r).bytes(), Egress)
        .flow((frame.key(), moved))
        .flow(again(new[1]));
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
}

#[test]
fn a_flow_whose_backend_is_gone_gets_another() {
    let mut kernel = furnished!();
    let (b, r) = (backend(1, B), backend(2, R));
    serve(&mut kernel, &[b]);
    let request = Frame::udp(&A, &VIP, 5000, PORT);
    let [(key, forward), _] = begin(&mut kernel, &request, &b);
    kernel.set(map_name::BACKENDS_V4, &r.id, &r.entry());
    choose_among(&mut kernel, 6, &[r.id]);
    remove(&mut kernel, &b);
    raise(&mut kernel, B.address);
    let [(_, new), reverse] = served(&request, &A, &r);
    let moved = FlowEntry { packets: 2, bytes: 2 * forward.bytes, ..new };
    let expected = Expected::forwarded(Redirect, delivered(&request, &r).bytes(), Egress)
        .flow((key, moved))
        .flow(reverse);
    check(&mut kernel, FromEndpoint, &request.bytes(), expected);
}

#[test]
fn an_answer_that_is_decided_again_still_comes_from_the_frontend() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let (request, answer) = conversations(&r).swap_remove(1);
    let [forward, reverse] = begin(&mut kernel, &request, &r);
    raise(&mut kernel, R.address);
    let again = |(key, entry): Entry| (key, FlowEntry { epoch: entry.epoch + 1, ..entry });
    let out = from_frontend(&answer).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(again(forward))
        .flow(and_packet(again(reverse), &answer))
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &answer.bytes(), expected);
    // From one that is no backend any more nothing comes.
    remove(&mut kernel, &r);
    raise(&mut kernel, A.address);
    let expected = Expected::dropped(&answer, DropReason::NoBackend, Ingress)
        .identities(R.identity, A.identity)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &answer.bytes(), expected);
}

#[test]
fn an_error_about_a_flow_of_the_service_is_one_about_the_frontend() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let request = Frame::udp(&A, &VIP, 5000, PORT).checksummed();
    let [_, reverse] = begin(&mut kernel, &request, &r);
    let inside = to_backend(&request, &r);
    for (from, shown) in [(R, VIP.address), (GATEWAY_OF_5, GATEWAY_OF_5.address)] {
        kernel.set(map_name::FLOWS_V4, &reverse.0, &reverse.1);
        let error = inside.error_about(from.address, 3, 4, 1400).macs(A.src_mac, [2; 6]);
        // What is quoted keeps the checksum that it came with.
        let told = request.error_about(shown, 3, 4, 1400).towards(&A).ttl(63);
        let (sent, mut out) = (error.bytes(), told.bytes());
        let checksum_of_quote = 14 + 20 + 8 + 20 + 6..14 + 20 + 8 + 20 + 8;
        out[checksum_of_quote.clone()].copy_from_slice(&sent[checksum_of_quote]);
        let message = 14 + 20;
        out[message + 2..message + 4].fill(0);
        let sum = crate::frame::checksum(&out[message..]);
        out[message + 2..message + 4].copy_from_slice(&sum);
        let expected = Expected::forwarded(Redirect, out, Ingress)
            .flow(and_packet(reverse, &error))
            .origin(Some(tunnel_from(&from)));
        check(&mut kernel, FromOverlay, &sent, expected);
    }
}

#[test]
fn pieces_of_a_datagram_go_where_the_first_went() {
    let mut kernel = furnished!();
    let r = backend(1, R);
    serve(&mut kernel, &[r]);
    let first = Frame::udp(&A, &VIP, 5000, PORT).fragment(0, true);
    let [forward, reverse] = begin(&mut kernel, &first, &r);
    let rest = Frame::ipv4(&A, &VIP, UDP, &[7; 24]).fragment(2, false);
    let out = rest.clone().destination(R.address).towards(&R);
    let expected = Expected::forwarded(Redirect, out.bytes(), Egress).flow(and_packet(forward, &rest));
    check(&mut kernel, FromEndpoint, &rest.bytes(), expected);
    // And back, through the tunnel.
    let first = Frame::udp(&R, &A, r.port, 5000).fragment(0, true);
    let out = from_frontend(&first).towards(&A).ttl(63);
    let reverse = and_packet(reverse, &first);
    let expected =
        Expected::forwarded(Redirect, out.bytes(), Ingress).flow(reverse).origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &first.bytes(), expected);
    let rest = Frame::ipv4(&R, &A, UDP, &[7; 24]).fragment(2, false);
    let out = rest.clone().source(VIP.address).towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, out.bytes(), Ingress)
        .flow(and_packet(reverse, &rest))
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &rest.bytes(), expected);
}

/// Its checksum covers no addresses, and cannot be changed in part.
#[test]
fn sctp_keeps_its_port() {
    let mut kernel = furnished!();
    let same = Backend { port: PORT, ..backend(1, B) };
    serve(&mut kernel, &[same]);
    let frame = Frame::ipv4(&A, &VIP, SCTP, &[3, 232, 0, 80, 0, 0, 0, 1, 9, 9, 9, 9]);
    begin(&mut kernel, &frame, &same);
    let other = backend(2, B);
    kernel.set(map_name::BACKENDS_V4, &other.id, &other.entry());
    choose_among(&mut kernel, 6, &[other.id]);
    let frame = frame.source_port(1001);
    let expected = Expected::dropped(&frame, DropReason::MasqueradeProtocol, Egress)
        .identities(A.identity, B.identity)
        .sent_as(frame.bytes());
    check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
}

#[test]
fn malformed_headers_reach_no_backend() {
    let mut kernel = furnished!();
    serve(&mut kernel, &[backend(1, B)]);
    let cut = Frame::ipv4(&A, &VIP, TCP, &[3, 232, 0, 80, 0, 0]);
    let expected = Expected::dropped(&cut, DropReason::Malformed, Egress).without_ports();
    check(&mut kernel, FromEndpoint, &cut.bytes(), expected);
    let hidden = Frame::ipv4(&A, &VIP, TCP, &[3, 232, 0, 80, 0, 0, 0, 0]).fragment(0, true);
    let expected = Expected::dropped(&hidden, DropReason::Fragment, Egress).without_ports();
    check(&mut kernel, FromEndpoint, &hidden.bytes(), expected);
}
