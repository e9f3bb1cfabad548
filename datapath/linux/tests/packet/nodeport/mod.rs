//! External clients: they reach a frontend by the underlay interface, and the node that they reach translates.

mod admission;
mod forward;
mod icmp;
mod ports;
mod reevaluation;

use datapath_abi::{FlowAction, SourceKind};
use datapath_linux::object::Program::FromNetdev;

use crate::{
    check::check,
    expected::{Entry, Expected},
    frame::Frame,
    kernel::Kernel,
    service::{self, Backend, PORT, VIP, add_frontend, dnat, dnat_entries, full_nat_entries},
    wire::{
        SCTP, TCP, UDP,
        tcp_flag::{ACK, SYN},
    },
    world::{CONFIG, GATEWAY, INTERNET, Peer, UNDERLAY},
};

/// INTERNET as a client: its packets come in by the underlay interface, and responses leave by it.
pub const CLIENT: Peer = external(INTERNET);
/// A router between the client and the node.
pub const ROUTER: [u8; 4] = [203, 0, 113, 254];

/// A peer that is reached by the underlay interface.
pub const fn external(peer: Peer) -> Peer {
    Peer {
        source: (SourceKind::Underlay, 0),
        action: (FlowAction::Underlay, CONFIG.underlay_ifindex),
        ..peer
    }
}

/// Writes a service of these backends, also with a node port.
pub fn install(kernel: &mut Kernel, backends: &[Backend]) {
    service::install(kernel, backends);
    for protocol in [TCP, UDP, SCTP] {
        add_frontend(kernel, [0; 4], protocol);
    }
}

/// First requests of the client to each frontend (an external address, a port of this node), and what the backend
/// responds to `seen`, the source address that it sees; the port that it sees is left to the test.
fn conversations(backend: &Backend, seen: &Peer) -> Vec<(Frame, Frame)> {
    let (at, port) = (&backend.at, backend.port);
    let mut all = Vec::new();
    for (number, frontend) in (0..).zip([&VIP, &UNDERLAY]) {
        let own = |first: u16| first + number;
        all.push((
            Frame::tcp(&CLIENT, frontend, own(1000), PORT, SYN),
            Frame::tcp(at, seen, port, own(1000), SYN | ACK),
        ));
        all.push((Frame::udp(&CLIENT, frontend, own(5000), PORT), Frame::udp(at, seen, port, own(5000))));
        all.push((
            Frame::udp(&CLIENT, frontend, own(6000), PORT).checksummed(),
            Frame::udp(at, seen, port, own(6000)).checksummed(),
        ));
    }
    all.into_iter().map(|(request, response)| (request.on_underlay(), response)).collect()
}

fn tcp_conversation(backend: &Backend, seen: &Peer) -> (Frame, Frame) {
    conversations(backend, seen).swap_remove(0)
}

fn udp_conversation(backend: &Backend, seen: &Peer) -> (Frame, Frame) {
    conversations(backend, seen).swap_remove(1)
}

/// The response as the client gets it: from the frontend that `request` went to.
fn to_client(response: &Frame, request: &Frame) -> Frame {
    let key = request.key();
    let port = u16::from_be_bytes(key.src_port_be);
    response.clone().source(key.dst).source_port(PORT).destination(key.src).destination_port(port)
}

/// The request as a remote backend gets it, from this port of the gateway.
fn through_tunnel(request: &Frame, backend: &Backend, port: u16) -> Frame {
    dnat(request, backend).source(GATEWAY.address).source_port(port).towards(&backend.at)
}

/// The client's first packet: it opens a flow to a remote backend, from this port of the gateway.
#[track_caller]
fn open_remote(kernel: &mut Kernel, request: &Frame, r: &Backend, port: u16) -> [Entry; 2] {
    let entries = full_nat_entries(request, &CLIENT, r, GATEWAY.address, port);
    let expected = Expected::redirected(&through_tunnel(request, r, port)).opens(request, entries);
    check(kernel, FromNetdev, request, expected);
    entries
}

/// The client's first packet: it opens a flow to a local backend.
#[track_caller]
fn open_local(kernel: &mut Kernel, request: &Frame, a: &Backend) -> [Entry; 2] {
    let entries = dnat_entries(request, &CLIENT, a);
    let out = dnat(request, a).towards(&a.at).ttl(63);
    check(kernel, FromNetdev, request, Expected::redirected(&out).opens(request, entries));
    entries
}
