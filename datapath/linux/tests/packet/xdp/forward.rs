//! Established flows of external clients are forwarded.

use datapath_abi::service_flags;
use datapath_linux::object::Program::{FromNetdev, FromTunnel};

use super::{
    OUTER_BYTES, check_forwarded, check_outer, check_to_router, in_tunnel, on_wire, open, requests, response,
    xdp_kernel,
};
use crate::{
    frame::Frame,
    kernel::{Tunnel, XDP_TX},
    namespace::UNDERLAY_IFINDEX,
    service::{PORT, VIP, backend, install, set_flags},
    wire::ETHERNET_BYTES,
    world::{GATEWAY, INTERNET, NODE_5, PARTNER, Peer, R, UNDERLAY, WORLD, tunnel_from},
};

#[test]
fn xdp_forwards_to_a_remote_backend_and_back() {
    let mut kernel = xdp_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    for (first, request) in requests() {
        let port = open(&mut kernel, &first);
        let key = kernel.run_for_tunnel_key(FromNetdev, &request);
        let bytes = check_forwarded(&mut kernel, FromNetdev, &request, &on_wire(&request), None);
        check_outer(&bytes, key);
        let back = response(&request, &r, &GATEWAY, port);
        let tunnel = tunnel_from(&R);
        let wire = in_tunnel(&back, tunnel);
        check_to_router(&check_forwarded(&mut kernel, FromTunnel, &back, &wire, Some(tunnel)));
    }
}

#[test]
fn xdp_forwards_to_an_external_backend_and_back() {
    let mut kernel = xdp_kernel!();
    let external = backend(1, Peer { address: [203, 0, 113, 9], ..PARTNER });
    install(&mut kernel, &[external]);
    for (first, request) in requests() {
        let port = open(&mut kernel, &first);
        let back = response(&request, &external, &UNDERLAY, port).on_underlay();
        for frame in [request, back] {
            check_to_router(&check_forwarded(&mut kernel, FromNetdev, &frame, &on_wire(&frame), None));
        }
    }
}

#[test]
fn xdp_forwards_unchanged_for_direct_server_return() {
    let mut kernel = xdp_kernel!();
    install(&mut kernel, &[backend(1, R)]);
    set_flags(&mut kernel, service_flags::DSR);
    for (first, request) in requests() {
        open(&mut kernel, &first);
        let bytes = check_forwarded(&mut kernel, FromNetdev, &request, &on_wire(&request), None);
        check_outer(&bytes, Tunnel { identity: WORLD, underlay: NODE_5.address });
        assert_eq!(bytes[OUTER_BYTES + ETHERNET_BYTES..], request.bytes()[ETHERNET_BYTES..]);
    }
}

/// Short frames are padded, and the tunnel keeps the padding.
#[test]
fn xdp_keeps_the_padding_of_a_frame() {
    let mut kernel = xdp_kernel!();
    install(&mut kernel, &[backend(1, R)]);
    let first = Frame::udp(&INTERNET, &VIP, 1000, PORT).on_underlay();
    open(&mut kernel, &first);
    let pad = |frame: &Frame| [frame.bytes(), vec![0; 2]].concat();
    let expected = kernel.run(FromNetdev, &pad(&first), None).bytes;
    let ran = kernel.run_xdp(&pad(&on_wire(&first)), UNDERLAY_IFINDEX);
    assert_eq!((ran.code, &ran.bytes[OUTER_BYTES..]), (XDP_TX, &expected[..]));
}
