//! ICMP errors about flows of external clients.

use datapath_linux::object::Program::{FromEndpoint, FromNetdev, FromTunnel};

use super::{
    CLIENT, ROUTER, conversations, install, open_local, open_remote, through_tunnel, to_client,
    udp_conversation,
};
use crate::{
    check::check,
    expected::{Expected, used_by},
    frame::Frame,
    kernel::Tunnel,
    populated_kernel,
    service::{Backend, VIP, backend, dnat, nat_port},
    wire::{PORT_UNREACHABLE, fragmentation_needed},
    world::{A, GATEWAY, GATEWAY_OF_5, NODE_5, R, REMOTE_NODE, UNDERLAY},
};

/// A conversation over UDP to the node port.
fn udp_conversation_by_node_port(a: &Backend) -> (Frame, Frame) {
    conversations(a, &CLIENT).swap_remove(4)
}

#[test]
fn nodeport_icmp_error_about_a_response_reaches_the_backend() {
    let mut kernel = populated_kernel!();
    let (a, r) = (backend(1, A), backend(1, R));
    let too_big = fragmentation_needed(1400);
    install(&mut kernel, &[r]);
    let (request, response) = udp_conversation(&r, &GATEWAY);
    let port = nat_port(&request, &r, 0);
    let [original, _] = open_remote(&mut kernel, &request, &r, port);
    let response = response.destination_port(port).ttl(60);
    // The backend's node would not accept the router's address out of the tunnel: the gateway takes its place.
    let error = to_client(&response, &request).icmp_error(too_big, ROUTER).on_underlay();
    let out = response.icmp_error(too_big, GATEWAY.address).towards(&R);
    check(&mut kernel, FromNetdev, &error, Expected::redirected(&out).entry(used_by(&error, original)));

    install(&mut kernel, &[a]);
    let (request, response) = udp_conversation_by_node_port(&a);
    let [original, _] = open_local(&mut kernel, &request, &a);
    let response = response.ttl(60);
    let error = to_client(&response, &request).icmp_error(too_big, ROUTER).on_underlay();
    let out = response.icmp_error(too_big, ROUTER).towards(&A).ttl(63);
    check(&mut kernel, FromNetdev, &error, Expected::redirected(&out).entry(used_by(&error, original)));
}

#[test]
fn nodeport_icmp_error_about_a_request_reaches_the_client() {
    let mut kernel = populated_kernel!();
    let (a, r) = (backend(1, A), backend(1, R));
    install(&mut kernel, &[r]);
    let (request, _) = udp_conversation(&r, &GATEWAY);
    let port = nat_port(&request, &r, 0);
    let [_, mut reply] = open_remote(&mut kernel, &request, &r, port);
    let inside = through_tunnel(&request, &r, port).ttl(60);
    let outside = request.clone().ttl(60);
    // From the backend itself, and from its node.
    for (from, vni) in [(R.address, R.identity), (GATEWAY_OF_5.address, REMOTE_NODE)] {
        let error = inside.icmp_error(PORT_UNREACHABLE, from).macs(R.dst_mac, R.src_mac);
        let out = outside.icmp_error(PORT_UNREACHABLE, VIP.address).macs(R.dst_mac, R.src_mac).ttl(63);
        reply = used_by(&error, reply);
        let expected = Expected::redirected(&out)
            .entry(reply)
            .tunnel(Tunnel { identity: vni, underlay: NODE_5.address });
        check(&mut kernel, FromTunnel, &error, expected);
    }

    install(&mut kernel, &[a]);
    let (request, _) = udp_conversation_by_node_port(&a);
    let [_, reply] = open_local(&mut kernel, &request, &a);
    let error = dnat(&request, &a).icmp_error(PORT_UNREACHABLE, A.address).macs(A.src_mac, A.dst_mac);
    let out = request.icmp_error(PORT_UNREACHABLE, UNDERLAY.address).macs(A.src_mac, A.dst_mac).ttl(63);
    check(&mut kernel, FromEndpoint, &error, Expected::redirected(&out).entry(used_by(&error, reply)));
}
