//! Masquerade: outside, an endpoint's flows have the node's underlay address and a port of the node's own range.

mod fragments;
mod icmp;
mod lifecycle;
mod ports;
mod scope;
mod translation;

use datapath_abi::{FlowAction, FlowEntry, NodeConfig, SourceKind, flow_flags, node_flags};
use datapath_linux::object::Program::FromEndpoint;
use datapath_packet::{flow_hash, masquerade_port};

use crate::{
    check::{check, populated_kernel},
    expected::{Entry, Expected, pair},
    frame::Frame,
    kernel::Kernel,
    namespace,
    world::{A, CONFIG, INTERNET, Peer, UNDERLAY, configure},
};

/// INTERNET, reached by the underlay interface.
const OUTSIDE: Peer = Peer {
    source: (SourceKind::Underlay, 0),
    action: (FlowAction::Underlay, namespace::UNDERLAY_IFINDEX),
    ..INTERNET
};

/// The configuration of a node that masquerades.
const MASQUERADING: NodeConfig =
    NodeConfig { flags: node_flags::MASQUERADE, underlay_ifindex: namespace::UNDERLAY_IFINDEX, ..CONFIG };

/// A populated node that masquerades, in a network namespace with routes; else the end of the test.
macro_rules! masquerading_kernel {
    () => {
        match $crate::masquerade::try_kernel() {
            Some(kernel) => kernel,
            None => return,
        }
    };
}
use masquerading_kernel;

fn try_kernel() -> Option<Kernel> {
    if !namespace::enter() {
        return None;
    }
    let mut kernel = populated_kernel()?;
    configure(&mut kernel, MASQUERADING);
    Some(kernel)
}

/// The port of a flow's `attempt`-th try.
fn port(frame: &Frame, attempt: u32) -> u16 {
    masquerade_port(flow_hash(&frame.key()), CONFIG.masquerade_port_min, CONFIG.masquerade_port_max, attempt)
}

/// The entries of a flow of A's that is masqueraded by `port`, after its first packet.
fn masquerade_entries(frame: &Frame, to: &Peer, port: u16) -> [Entry; 2] {
    let [(key, original), (_, reply)] = pair(frame, &A, to);
    let original = FlowEntry {
        flags: flow_flags::REWRITE_SRC,
        rewrite_src: UNDERLAY.address,
        rewrite_src_port_be: port.to_be_bytes(),
        ..original
    };
    let reply = FlowEntry {
        flags: flow_flags::REPLY | flow_flags::REWRITE_DST,
        source_kind: SourceKind::Underlay as u8,
        rewrite_dst: key.src,
        rewrite_dst_port_be: key.src_port_be,
        ..reply
    };
    [(key, original), (original.reverse_key(&key), reply)]
}

/// A packet of A's as it leaves the node.
fn masqueraded(frame: &Frame, port: u16) -> Frame {
    frame.clone().ttl(63).source(UNDERLAY.address).source_port(port)
}

/// A's first packet to the world: it opens a flow that is masqueraded by this port.
#[track_caller]
fn open(kernel: &mut Kernel, frame: &Frame, port: u16) -> [Entry; 2] {
    open_to(kernel, frame, &OUTSIDE, port)
}

#[track_caller]
fn open_to(kernel: &mut Kernel, frame: &Frame, to: &Peer, port: u16) -> [Entry; 2] {
    let entries = masquerade_entries(frame, to, port);
    let expected = Expected::redirected(&masqueraded(frame, port)).opens(frame, entries);
    check(kernel, FromEndpoint, frame, expected);
    entries
}

/// A response to A, as it comes in by the underlay interface.
fn response(to_a: &Frame, port: u16) -> Frame {
    to_a.clone().destination(UNDERLAY.address).destination_port(port).on_underlay()
}

/// A response to A, as A gets it.
fn delivered(to_a: &Frame) -> Frame {
    to_a.clone().towards(&A).ttl(63)
}
