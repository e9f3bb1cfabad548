//! Direct server return, at both nodes: the client's node forwards packets of an external client as they are, and the
//! backend's node responds to the client directly.

mod admission;
mod forward;
mod reevaluation;

use datapath_abi::{
    BACKEND_ELSEWHERE, DIRECT_DST_MARK, DIRECT_SRC_MARK, FlowEntry, MacBytes, SourceKind, epoch_shard_v4,
    service_flags,
};
use datapath_linux::object::Program::{FromNetdev, FromTunnel};

use crate::{
    check::check,
    expected::{Entry, Expected, pair},
    frame::Frame,
    kernel::{Kernel, Tunnel},
    nodeport::{self, CLIENT},
    service::{Backend, PORT, VIP, dnat, dnat_entries, set_flags},
    wire::{
        TCP,
        tcp_flag::{ACK, SYN},
    },
    world::{A, NODE_5, Peer, WORLD, epoch_of},
};

/// The client as the backend's node knows it: node 5 forwards its packets.
const CLIENT_OF_NODE_5: Peer = Peer { source: (SourceKind::Node, 5), ..CLIENT };
/// The origin of the client's packets at the backend's node.
const TUNNEL: Tunnel = Tunnel { identity: WORLD, underlay: NODE_5.address };

/// Writes a service of these backends with direct server return, also with a node port.
fn install(kernel: &mut Kernel, backends: &[Backend]) {
    nodeport::install(kernel, backends);
    set_flags(kernel, service_flags::DSR);
}

/// The inner Ethernet addresses that name a backend: the encoding of the programs, implemented a second time.
fn backend_macs(backend: &Backend) -> (MacBytes, MacBytes) {
    let [a, b, c, d] = backend.at.address;
    let [high, low] = backend.port.to_be_bytes();
    let ([d0, d1], [s0, s1, s2, s3]) = (DIRECT_DST_MARK, DIRECT_SRC_MARK);
    ([d0, d1, a, b, c, d], [s0, s1, s2, s3, high, low])
}

/// The client's packet in the tunnel.
fn tunnelled(frame: &Frame, backend: &Backend) -> Frame {
    let (dst_mac, src_mac) = backend_macs(backend);
    frame.clone().macs(dst_mac, src_mac)
}

/// The flow's entries at the client's node.
fn client_node_entries(request: &Frame, r: &Backend) -> [Entry; 2] {
    let (dst_mac, src_mac) = backend_macs(r);
    let [(key, original), (reply_key, reply)] = pair(request, &CLIENT, &r.at);
    let epoch = epoch_of(CLIENT.address) + epoch_of(r.at.address);
    let (client, backend) = (epoch_shard_v4(CLIENT.address) as u16, epoch_shard_v4(r.at.address) as u16);
    let original = FlowEntry {
        epoch,
        src_shard: client,
        dst_shard: backend,
        dst_mac,
        src_mac,
        rewrite_dst: r.at.address,
        rewrite_dst_port_be: r.port.to_be_bytes(),
        backend: r.id,
        ..original
    };
    let reply = FlowEntry { epoch, src_shard: backend, dst_shard: client, backend: r.id, ..reply };
    [(key, original), (reply_key, reply)]
}

/// The flow's entries at the backend's node.
fn backend_node_entries(request: &Frame, client: &Peer, a: &Backend) -> [Entry; 2] {
    dnat_entries(request, client, a)
        .map(|(key, entry)| (key, FlowEntry { backend: BACKEND_ELSEWHERE, ..entry }))
}

/// The client's first packet at its node.
#[track_caller]
fn open_at_client_node(kernel: &mut Kernel, request: &Frame, r: &Backend) -> [Entry; 2] {
    let entries = client_node_entries(request, r);
    check(kernel, FromNetdev, request, Expected::redirected(&tunnelled(request, r)).opens(request, entries));
    entries
}

/// The client's first packet at the backend's node.
#[track_caller]
fn open_at_backend_node(kernel: &mut Kernel, request: &Frame, a: &Backend) -> [Entry; 2] {
    let entries = backend_node_entries(request, &CLIENT_OF_NODE_5, a);
    let out = dnat(request, a).towards(&A).ttl(63);
    let expected = Expected::redirected(&out).opens(request, entries).tunnel(TUNNEL);
    check(kernel, FromTunnel, &tunnelled(request, a), expected);
    entries
}

/// The client's first packets to an external address of the service, and to a port of node 5.
fn requests() -> Vec<Frame> {
    let to = |frontend: &Peer| {
        [
            Frame::syn(&CLIENT, frontend),
            Frame::udp(&CLIENT, frontend, 5000, PORT),
            Frame::udp(&CLIENT, frontend, 6000, PORT).checksummed(),
        ]
    };
    [&VIP, &NODE_5].into_iter().flat_map(to).collect()
}

/// What the backend responds to the client.
fn response(request: &Frame, a: &Backend) -> Frame {
    let port = u16::from_be_bytes(request.key().src_port_be);
    match request.key().protocol {
        TCP => Frame::tcp(&a.at, &CLIENT, a.port, port, SYN | ACK),
        _ if request.has_checksum() => Frame::udp(&a.at, &CLIENT, a.port, port).checksummed(),
        _ => Frame::udp(&a.at, &CLIENT, a.port, port),
    }
}

/// The response as the client gets it.
fn from_frontend(response: &Frame, request: &Frame) -> Frame {
    response.clone().source(request.key().dst).source_port(PORT)
}
