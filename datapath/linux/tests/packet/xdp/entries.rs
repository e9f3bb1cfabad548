//! What a flow entry must say for the XDP program to forward a packet.

use datapath_abi::{BACKEND_ELSEWHERE, FlowAction, FlowEntry, FlowKey, SourceKind, V4, flow_flags};

use super::{check_control, check_passed, in_tunnel, on_wire, open, xdp_kernel};
use crate::{
    frame::Frame,
    kernel::Kernel,
    namespace::UNDERLAY_IFINDEX,
    service::{PORT, VIP, backend, install},
    world::{GATEWAY, HERE, INTERNET, R, tunnel_from},
};

/// A change of a flow entry, after which the packet goes up.
type Change = (&'static str, fn(FlowEntry) -> FlowEntry);

/// Of either direction.
const BOTH: [Change; 10] = [
    ("to an endpoint", |entry| with_action(entry, FlowAction::Local, HERE)),
    ("to the host", |entry| with_action(entry, FlowAction::Host, 0)),
    ("by the stack", |entry| with_action(entry, FlowAction::Stack, 0)),
    ("by another device", |entry| with_action(entry, FlowAction::Underlay, UNDERLAY_IFINDEX + 1)),
    ("unknown action", |entry| FlowEntry { action: 99, ..entry }),
    ("from an endpoint", |entry| with_source(entry, SourceKind::Endpoint, HERE)),
    ("from the host", |entry| with_source(entry, SourceKind::Host, 0)),
    ("from an unknown node", |entry| with_source(entry, SourceKind::Node, 7)),
    ("from no node", |entry| with_source(entry, SourceKind::Node, u32::MAX)),
    ("previous epoch", |entry| FlowEntry { epoch: entry.epoch.wrapping_sub(1), ..entry }),
];

const ORIGINAL: [Change; 6] = [
    ("from the backend's node", |entry| with_source(entry, SourceKind::Node, 5)),
    ("from another device", |entry| with_source(entry, SourceKind::Underlay, 1)),
    ("to an unknown node", |entry| with_action(entry, FlowAction::Tunnel, 7)),
    ("to no node", |entry| with_action(entry, FlowAction::Tunnel, u32::MAX)),
    ("to a node without a neighbour", |entry| with_action(entry, FlowAction::Tunnel, 6)),
    ("without a backend", |entry| FlowEntry {
        backend: 0,
        flags: entry.flags & !flow_flags::REWRITE_DST,
        ..entry
    }),
];

const REPLY: [Change; 5] = [
    ("from the underlay", |entry| with_source(entry, SourceKind::Underlay, 0)),
    ("from another node", |entry| with_source(entry, SourceKind::Node, 6)),
    ("back into the tunnel", |entry| with_action(entry, FlowAction::Tunnel, 5)),
    ("backend chosen by another node", |entry| FlowEntry { backend: BACKEND_ELSEWHERE, ..entry }),
    ("another identity", |entry| FlowEntry { src_identity: R.identity + 1, ..entry }),
];

fn with_action(entry: FlowEntry, action: FlowAction, target: u32) -> FlowEntry {
    FlowEntry { action: action as u8, target, ..entry }
}

fn with_source(entry: FlowEntry, kind: SourceKind, source: u32) -> FlowEntry {
    FlowEntry { source_kind: kind as u8, source, ..entry }
}

#[track_caller]
fn check_changes(kernel: &mut Kernel, frame: &Frame, key: FlowKey<V4>, changes: &[Change]) {
    let entry = kernel.flow(&key).expect("a flow");
    for (case, change) in changes {
        kernel.set_flow((key, change(entry)));
        check_passed(kernel, &frame.bytes(), case);
        kernel.set_flow((key, entry));
        check_control(kernel, &frame.bytes(), case);
    }
}

#[test]
fn xdp_passes_flows_with_other_entries_to_the_classifiers() {
    let mut kernel = xdp_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let first = Frame::udp(&INTERNET, &VIP, 1000, PORT).on_underlay();
    let port = open(&mut kernel, &first);
    for changes in [&BOTH[..], &ORIGINAL] {
        check_changes(&mut kernel, &on_wire(&first), first.key(), changes);
    }
    let response = Frame::udp(&R, &GATEWAY, r.port, port);
    let wire = in_tunnel(&response, tunnel_from(&R));
    for changes in [&BOTH[..], &REPLY] {
        check_changes(&mut kernel, &wire, response.key(), changes);
    }
}
