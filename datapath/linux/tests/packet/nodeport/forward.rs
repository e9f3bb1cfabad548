//! To each kind of backend and back.

use datapath_abi::{
    DropReason, FlowAction, NodeConfig,
    node_flags::{LEGACY_HOST_ROUTING, NATIVE},
    service_flags,
};
use datapath_linux::object::Program::{FromEndpoint, FromHost, FromNetdev, FromTunnel, ToEndpoint, ToNetdev};

use super::{
    CLIENT, conversations, external, install, open_local, open_remote, tcp_conversation, through_tunnel,
    to_client,
};
use crate::{
    check::check,
    expected::{Expected, next_epoch, used_by},
    frame::Frame,
    kernel::Tunnel,
    namespace, populated_kernel,
    service::{PORT, VIP, backend, dnat, dnat_entries, full_nat_entries, nat_port, set_flags},
    wire::{
        UDP,
        tcp_flag::{ACK, SYN},
    },
    world::{
        A, CONFIG, GATEWAY, GATEWAY_OF_5, HERE, HOST, NODE_5, PARTNER, Peer, R, UNDERLAY, WORLD, bump_epoch,
        configure, reset_epoch, tunnel_from,
    },
};

#[test]
fn nodeport_local_backend_sees_the_client() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    for (request, response) in conversations(&a, &CLIENT) {
        let [original, reply] = open_local(&mut kernel, &request, &a);
        let out = to_client(&response, &request).ttl(63);
        check(
            &mut kernel,
            FromEndpoint,
            &response,
            Expected::redirected(&out).entry(used_by(&response, reply)),
        );
        let out = dnat(&request, &a).towards(&A).ttl(63);
        check(
            &mut kernel,
            FromNetdev,
            &request,
            Expected::redirected(&out).entry(used_by(&request, original)),
        );
        // Through the other frontend, the flow has the same key at the backend.
        for (key, _) in [original, reply] {
            kernel.remove_flow(&key);
        }
    }
}

#[test]
fn nodeport_remote_backend_sees_the_gateway() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    for (request, response) in conversations(&r, &GATEWAY) {
        let port = nat_port(&request, &r, 0);
        let [original, reply] = open_remote(&mut kernel, &request, &r, port);
        let response = response.destination_port(port);
        let expected = Expected::redirected(&to_client(&response, &request).ttl(63))
            .entry(used_by(&response, reply))
            .tunnel(tunnel_from(&R));
        check(&mut kernel, FromTunnel, &response, expected);
        let out = through_tunnel(&request, &r, port);
        check(
            &mut kernel,
            FromNetdev,
            &request,
            Expected::redirected(&out).entry(used_by(&request, original)),
        );
        // The VNI says that the sender is the world, without telling which address.
        let key = kernel.run_for_tunnel_key(FromNetdev, &request);
        assert_eq!(key, Tunnel { identity: WORLD, underlay: NODE_5.address });
    }
    let partner = Frame::udp(&PARTNER, &VIP, 5000, PORT).on_underlay();
    let key = kernel.run_for_tunnel_key(FromNetdev, &partner);
    assert_eq!(key.identity, WORLD, "CIDR identities are local to this node");
}

/// The backend's node: the client has a node's address and the identity of the world.
#[test]
fn nodeport_request_of_another_node_reaches_the_backend() {
    let mut kernel = populated_kernel!();
    let tunnel = Tunnel { identity: WORLD, underlay: NODE_5.address };
    let client = Peer { identity: WORLD, ..GATEWAY_OF_5 };
    let request = Frame::tcp(&client, &A, 61_500, 8080, SYN);
    let expected = Expected::redirected(&request.clone().towards(&A).ttl(63))
        .new_flow(&request, &client, &A)
        .tunnel(tunnel);
    check(&mut kernel, FromTunnel, &request, expected);
    // An endpoint's address cannot have the identity of the world.
    let forged = Frame::syn(&Peer { identity: WORLD, ..R }, &A);
    let expected = Expected::dropped(&forged, DropReason::ForgedIdentity).identities(WORLD, 0).tunnel(tunnel);
    check(&mut kernel, FromTunnel, &forged, expected);
}

#[test]
fn nodeport_external_backend_sees_the_node() {
    let mut kernel = populated_kernel!();
    let without_cidr_identity = Peer { address: [198, 51, 100, 77], ..CLIENT };
    reset_epoch(&mut kernel, without_cidr_identity.address);
    for at in [external(PARTNER), without_cidr_identity] {
        let external = backend(1, at);
        install(&mut kernel, &[external]);
        for (request, response) in conversations(&external, &UNDERLAY) {
            let port = nat_port(&request, &external, 0);
            let entries = full_nat_entries(&request, &CLIENT, &external, UNDERLAY.address, port);
            let out = dnat(&request, &external).source(UNDERLAY.address).source_port(port).ttl(63);
            check(&mut kernel, FromNetdev, &request, Expected::redirected(&out).opens(&request, entries));
            let response = response.destination_port(port).on_underlay();
            let out = to_client(&response, &request).ttl(63);
            let expected = Expected::redirected(&out).entry(used_by(&response, entries[1]));
            check(&mut kernel, FromNetdev, &response, expected);
            kernel.remove_flow(&entries[0].0);
        }
    }
}

#[test]
fn nodeport_without_tunnel_a_remote_backend_sees_the_node() {
    let mut kernel = populated_kernel!();
    configure(&mut kernel, NodeConfig { flags: NATIVE, vxlan_ifindex: 0, ..CONFIG });
    let r = backend(1, external(Peer { dst_mac: GATEWAY.dst_mac, src_mac: GATEWAY.src_mac, ..R }));
    install(&mut kernel, &[r]);
    let (request, response) = tcp_conversation(&r, &UNDERLAY);
    let port = nat_port(&request, &r, 0);
    let entries = full_nat_entries(&request, &CLIENT, &r, UNDERLAY.address, port);
    let out = dnat(&request, &r).source(UNDERLAY.address).source_port(port).ttl(63);
    check(&mut kernel, FromNetdev, &request, Expected::redirected(&out).opens(&request, entries));
    let response = response.destination_port(port).on_underlay();
    let out = to_client(&response, &request).ttl(63);
    check(
        &mut kernel,
        FromNetdev,
        &response,
        Expected::redirected(&out).entry(used_by(&response, entries[1])),
    );
}

#[test]
fn nodeport_with_legacy_host_routing_passes_the_stack_both_ways() {
    let mut kernel = populated_kernel!();
    configure(&mut kernel, NodeConfig { flags: LEGACY_HOST_ROUTING, ..CONFIG });
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let (request, response) = tcp_conversation(&a, &CLIENT);
    let client = Peer { action: (FlowAction::Stack, 0), ..CLIENT };
    let entries = dnat_entries(&request, &client, &a);
    let inside = dnat(&request, &a);
    check(&mut kernel, FromNetdev, &request, Expected::passed(&inside).opens(&request, entries));
    // The stack routes the packet to `warren_host` and on to A's device, where it belongs to its flow.
    let routed = inside.clone().towards(&A);
    check(&mut kernel, FromHost, &inside, Expected::redirected(&routed));
    check(&mut kernel, ToEndpoint, &routed, Expected::passed(&routed));
    // The response's source is translated as it leaves the node.
    check(
        &mut kernel,
        FromEndpoint,
        &response,
        Expected::passed(&response).entry(used_by(&response, entries[1])),
    );
    kernel.ingress_ifindex = HERE;
    check(&mut kernel, ToNetdev, &response, Expected::unspec(&to_client(&response, &request)));
}

/// The host sees an address that its stack routes out of `warren_host`, where `from_host` is.
#[test]
fn nodeport_host_backend_sees_the_subnet_address() {
    let mut kernel = populated_kernel!();
    let host = backend(1, UNDERLAY);
    let seen = Peer { address: [10, 0, 1, 0], ..CLIENT };
    install(&mut kernel, &[host]);
    for (request, response) in conversations(&host, &seen) {
        let port = nat_port(&request, &host, 0);
        let [original, reply] = full_nat_entries(&request, &CLIENT, &host, seen.address, port);
        let out = dnat(&request, &host).source(seen.address).source_port(port).towards(&UNDERLAY);
        check(
            &mut kernel,
            FromNetdev,
            &request,
            Expected::redirected(&out).opens(&request, [original, reply]),
        );
        let response = response.destination_port(port);
        let out = to_client(&response, &request).ttl(63);
        let reply = used_by(&response, reply);
        check(&mut kernel, FromHost, &response, Expected::redirected(&out).entry(reply));
        // The flow is decided again by a response.
        bump_epoch(&mut kernel, UNDERLAY.address);
        let expected = Expected::redirected(&out)
            .entry(next_epoch(original))
            .entry(used_by(&response, next_epoch(reply)));
        check(&mut kernel, FromHost, &response, expected);
        reset_epoch(&mut kernel, UNDERLAY.address);
    }
    // A segment to that address without a flow is dropped, and resets no connection.
    let stray = Frame::tcp(&UNDERLAY, &seen, 8080, 61_999, ACK);
    let expected = Expected::dropped(&stray, DropReason::UnknownDestination).identities(HOST, 0);
    check(&mut kernel, FromHost, &stray, expected);
}

#[test]
fn nodeport_is_one_of_each_address_of_the_node() {
    if !namespace::enter() {
        return;
    }
    let mut kernel = populated_kernel!();
    let underlay_ifindex = namespace::UNDERLAY_IFINDEX;
    configure(&mut kernel, NodeConfig { underlay_ifindex, ..CONFIG });
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    // The backends' nodes do not know this address: direct server return is not used for it.
    set_flags(&mut kernel, service_flags::DSR);
    let other_address = Peer { address: namespace::OTHER_ADDRESS, ..UNDERLAY };
    let request = Frame::udp(&CLIENT, &other_address, 5000, PORT).on_underlay();
    let port = nat_port(&request, &r, 0);
    let client = Peer { action: (FlowAction::Underlay, underlay_ifindex), ..CLIENT };
    let entries = full_nat_entries(&request, &client, &r, GATEWAY.address, port);
    let expected = Expected::redirected(&through_tunnel(&request, &r, port)).opens(&request, entries);
    check(&mut kernel, FromNetdev, &request, expected);
    let response = Frame::udp(&R, &GATEWAY, r.port, port);
    let expected = Expected::redirected(&to_client(&response, &request).ttl(63))
        .entry(used_by(&response, entries[1]))
        .tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &response, expected);
    // Addresses behind the node have no node port.
    for address in [namespace::BEHIND_ANOTHER_DEVICE, namespace::UNREACHABLE, [10, 201, 0, 9]] {
        let behind = Peer { address, ..UNDERLAY };
        let frame = Frame::udp(&CLIENT, &behind, 5000, PORT).on_underlay();
        check(&mut kernel, FromNetdev, &frame, Expected::unspec(&frame));
    }
}

#[test]
fn nodeport_fragments_follow_the_first() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    let first = request.clone().checksummed().fragment(0, true).on_underlay();
    let port = nat_port(&first, &r, 0);
    let [original, reply] = open_remote(&mut kernel, &first, &r, port);
    let later = Frame::ipv4(&CLIENT, &VIP, UDP, &[7; 32]).fragment(2, false).on_underlay();
    let out = later.clone().source(GATEWAY.address).destination(R.address).towards(&R);
    check(&mut kernel, FromNetdev, &later, Expected::redirected(&out).entry(used_by(&later, original)));
    // The response.
    let first = Frame::udp(&R, &GATEWAY, r.port, port).checksummed().fragment(0, true);
    let reply = used_by(&first, reply);
    let expected =
        Expected::redirected(&to_client(&first, &request).ttl(63)).entry(reply).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &first, expected);
    let later = Frame::ipv4(&R, &GATEWAY, UDP, &[8; 16]).fragment(2, false);
    let out = later.clone().source(VIP.address).destination(CLIENT.address).ttl(63);
    let expected = Expected::redirected(&out).entry(used_by(&later, reply)).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &later, expected);
}
