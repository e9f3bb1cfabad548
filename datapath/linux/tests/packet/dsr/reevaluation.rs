//! Flows that are decided again at either node.

use datapath_abi::FlowEntry;
use datapath_linux::object::Program::{FromEndpoint, FromNetdev, FromTunnel};

use super::{
    CLIENT_OF_NODE_5, TUNNEL, backend_node_entries, from_frontend, install, open_at_backend_node,
    open_at_client_node, response, tunnelled,
};
use crate::{
    check::check,
    expected::{Expected, next_epoch, previous_epoch, used_by},
    frame::Frame,
    nodeport::CLIENT,
    populated_kernel,
    service::{self, PORT, VIP, backend, dnat, nat_port},
    world::{A, B, GATEWAY, R, UNKNOWN_AT_5, bump_epoch},
};

#[test]
fn dsr_flow_moves_when_the_client_node_names_another_backend() {
    let mut kernel = populated_kernel!();
    let (a, b) = (backend(1, A), backend(2, B));
    install(&mut kernel, &[a]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    let [original, _] = open_at_backend_node(&mut kernel, &request, &a);
    let [(key, moved), reply] = backend_node_entries(&request, &CLIENT_OF_NODE_5, &b);
    let moved = FlowEntry { packets: 2, bytes: 2 * original.1.bytes, ..moved };
    let expected = Expected::redirected(&dnat(&request, &b).towards(&B).ttl(63))
        .entry((key, moved))
        .entry(reply)
        .tunnel(TUNNEL);
    check(&mut kernel, FromTunnel, &tunnelled(&request, &b), expected);
}

#[test]
fn dsr_flow_decided_again_keeps_its_backend_at_both_nodes() {
    let mut kernel = populated_kernel!();
    // At the client's node, whatever the slots and the service's mode say now.
    let (r, other) = (backend(1, R), backend(2, UNKNOWN_AT_5));
    install(&mut kernel, &[r]);
    let syn = Frame::syn(&CLIENT, &VIP).on_underlay();
    let [original, reply] = open_at_client_node(&mut kernel, &syn, &r);
    service::install(&mut kernel, &[other]);
    bump_epoch(&mut kernel, R.address);
    let ack = Frame::ack(&CLIENT, &VIP).on_underlay();
    let expected = Expected::redirected(&tunnelled(&ack, &r))
        .entry(used_by(&ack, next_epoch(original)))
        .entry(next_epoch(reply));
    check(&mut kernel, FromNetdev, &ack, expected);
    // After the client has closed the connection, a new one with the same ports follows the slots.
    let fin = Frame::fin(&CLIENT, &VIP).on_underlay();
    kernel.run(FromNetdev, &fin, None);
    kernel.run(FromNetdev, &syn, None);
    let entry = kernel.flow(&syn.key()).expect("a flow");
    assert_eq!((entry.backend, entry.rewrite_src), (other.id, GATEWAY.address));

    // At the backend's node, by a response.
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    let [original, reply] = open_at_backend_node(&mut kernel, &request, &a);
    bump_epoch(&mut kernel, A.address);
    let back = response(&request, &a);
    let out = from_frontend(&back, &request).ttl(63);
    let original = next_epoch(original);
    let reply = used_by(&back, next_epoch(reply));
    check(&mut kernel, FromEndpoint, &back, Expected::redirected(&out).entry(original).entry(reply));
    // The original direction's entry, which names the client's node, is lost.
    kernel.remove_flow(&original.0);
    kernel.set_flow(previous_epoch(reply));
    let restored = FlowEntry { packets: 0, bytes: 0, source: 0, ..original.1 };
    let expected = Expected::redirected(&out).entry((original.0, restored)).entry(used_by(&back, reply));
    check(&mut kernel, FromEndpoint, &back, expected);
}

#[test]
fn dsr_is_not_used_for_flows_that_are_older() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    service::install(&mut kernel, &[r]);
    let (syn, ack) = (Frame::syn(&CLIENT, &VIP).on_underlay(), Frame::ack(&CLIENT, &VIP).on_underlay());
    kernel.run(FromNetdev, &syn, None);
    install(&mut kernel, &[r]);
    bump_epoch(&mut kernel, R.address);
    kernel.run(FromNetdev, &ack, None);
    let entry = kernel.flow(&syn.key()).expect("a flow");
    assert_eq!(
        (entry.packets, entry.rewrite_src, entry.rewrite_src_port_be),
        (2, GATEWAY.address, nat_port(&syn, &r, 0).to_be_bytes())
    );
}
