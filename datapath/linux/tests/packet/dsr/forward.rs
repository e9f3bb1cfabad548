//! Requests at both nodes, and responses at the backend's node.

use datapath_abi::{DropReason, FlowAction, NodeConfig, node_flags::LEGACY_HOST_ROUTING};
use datapath_linux::object::Program::{FromEndpoint, FromHost, FromNetdev, FromTunnel, ToEndpoint, ToNetdev};

use super::{
    CLIENT_OF_NODE_5, TUNNEL, backend_node_entries, from_frontend, install, open_at_backend_node,
    open_at_client_node, requests, response, tunnelled,
};
use crate::{
    check::check,
    expected::{Expected, used_by},
    frame::Frame,
    kernel::Tunnel,
    nodeport::{CLIENT, ROUTER},
    populated_kernel,
    service::{PORT, VIP, backend, dnat},
    wire::{UDP, fragmentation_needed},
    world::{A, B, CONFIG, HERE, NODE_5, Peer, R, UNDERLAY, WORLD, configure},
};

#[test]
fn dsr_client_node_forwards_packets_unchanged() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    for frontend in [&VIP, &UNDERLAY] {
        for request in
            [Frame::syn(&CLIENT, frontend), Frame::udp(&CLIENT, frontend, 5000, PORT).checksummed()]
        {
            let request = request.on_underlay();
            let [original, _] = open_at_client_node(&mut kernel, &request, &r);
            let expected = Expected::redirected(&tunnelled(&request, &r)).entry(used_by(&request, original));
            check(&mut kernel, FromNetdev, &request, expected);
            let key = kernel.run_for_tunnel_key(FromNetdev, &request);
            assert_eq!(key, Tunnel { identity: WORLD, underlay: NODE_5.address });
        }
    }
}

#[test]
fn dsr_backend_node_translates_both_ways() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    for request in requests() {
        let [original, reply] = open_at_backend_node(&mut kernel, &request, &a);
        let back = response(&request, &a);
        let out = from_frontend(&back, &request).ttl(63);
        check(&mut kernel, FromEndpoint, &back, Expected::redirected(&out).entry(used_by(&back, reply)));
        let expected = Expected::redirected(&dnat(&request, &a).towards(&A).ttl(63))
            .entry(used_by(&request, original))
            .tunnel(TUNNEL);
        check(&mut kernel, FromTunnel, &tunnelled(&request, &a), expected);
        // Through the other frontend, the flow has the same key at the backend.
        for (key, _) in [original, reply] {
            kernel.remove_flow(&key);
        }
    }
}

#[test]
fn dsr_backend_node_with_legacy_host_routing_passes_the_stack_both_ways() {
    let mut kernel = populated_kernel!();
    configure(&mut kernel, NodeConfig { flags: LEGACY_HOST_ROUTING, ..CONFIG });
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let request = requests().swap_remove(0);
    let client = Peer { action: (FlowAction::Stack, 0), ..CLIENT_OF_NODE_5 };
    let entries = backend_node_entries(&request, &client, &a);
    let received = tunnelled(&request, &a);
    let inside = dnat(&received, &a);
    let expected = Expected::passed(&inside).opens(&request, entries).tunnel(TUNNEL);
    check(&mut kernel, FromTunnel, &received, expected);
    let routed = inside.clone().towards(&A);
    check(&mut kernel, FromHost, &inside, Expected::redirected(&routed));
    check(&mut kernel, ToEndpoint, &routed, Expected::passed(&routed));
    let back = response(&request, &a);
    check(&mut kernel, FromEndpoint, &back, Expected::passed(&back).entry(used_by(&back, entries[1])));
    kernel.ingress_ifindex = HERE;
    check(&mut kernel, ToNetdev, &back, Expected::unspec(&from_frontend(&back, &request)));
}

#[test]
fn dsr_fragments_follow_the_first() {
    let mut kernel = populated_kernel!();
    let (a, r) = (backend(1, A), backend(1, R));
    install(&mut kernel, &[r]);
    let first = Frame::udp(&CLIENT, &VIP, 5000, PORT).checksummed().fragment(0, true);
    let later = Frame::ipv4(&CLIENT, &VIP, UDP, &[7; 32]).fragment(2, false);
    let [original, _] = open_at_client_node(&mut kernel, &first.clone().on_underlay(), &r);
    let expected = Expected::redirected(&tunnelled(&later, &r)).entry(used_by(&later, original));
    check(&mut kernel, FromNetdev, &later.clone().on_underlay(), expected);

    let mut kernel = populated_kernel!();
    install(&mut kernel, &[a]);
    let [original, _] = open_at_backend_node(&mut kernel, &first, &a);
    let out = later.clone().destination(A.address).towards(&A).ttl(63);
    let expected = Expected::redirected(&out).entry(used_by(&later, original)).tunnel(TUNNEL);
    check(&mut kernel, FromTunnel, &tunnelled(&later, &a), expected);
}

#[test]
fn dsr_icmp_error_about_a_response_reaches_the_backend() {
    let mut kernel = populated_kernel!();
    let (a, r) = (backend(1, A), backend(1, R));
    let too_big = fragmentation_needed(1400);
    // The error comes to the node that the client's packets come to, which forwards it.
    install(&mut kernel, &[r]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT).on_underlay();
    let [original, _] = open_at_client_node(&mut kernel, &request, &r);
    let sent = from_frontend(&response(&request, &r), &request).ttl(60);
    let error = sent.icmp_error(too_big, ROUTER).on_underlay();
    let expected = Expected::redirected(&tunnelled(&error, &r)).entry(used_by(&error, original));
    check(&mut kernel, FromNetdev, &error, expected);

    let mut kernel = populated_kernel!();
    install(&mut kernel, &[a]);
    let [original, _] = open_at_backend_node(&mut kernel, &request, &a);
    let back = response(&request, &a).ttl(60);
    let sent = from_frontend(&back, &request);
    let error = sent.icmp_error(too_big, ROUTER);
    let out = back.icmp_error(too_big, ROUTER).towards(&A).ttl(63);
    let expected = Expected::redirected(&out).entry(used_by(&error, original)).tunnel(TUNNEL);
    check(&mut kernel, FromTunnel, &tunnelled(&error, &a), expected);
    // The error cannot come from an address of the fleet.
    let forged = tunnelled(&sent.icmp_error(too_big, B.address), &a);
    let expected = Expected::dropped(&forged, DropReason::InnerSource).identities(WORLD, 0).tunnel(TUNNEL);
    check(&mut kernel, FromTunnel, &forged, expected);
}
