//! Fragmented datagrams.

use datapath_abi::{DropReason, FragmentKey, FragmentPorts, map_name};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev};

use super::{delivered, masquerading_kernel, open, port, response};
use crate::{
    check::check,
    expected::{Expected, used_by},
    frame::Frame,
    wire::UDP,
    world::{A, INTERNET, UNDERLAY},
};

#[test]
fn masquerade_fragments_follow_the_first() {
    let mut kernel = masquerading_kernel!();
    let first = Frame::udp(&A, &INTERNET, 5000, 53).checksummed().fragment(0, true);
    let port = port(&first, 0);
    // Before the first fragment, the datagram's ports are unknown.
    let later = Frame::ipv4(&A, &INTERNET, UDP, &[7; 32]).fragment(2, false);
    let expected = Expected::dropped(&later, DropReason::Fragment).identities(A.identity, INTERNET.identity);
    check(&mut kernel, FromEndpoint, &later, expected);

    let [original, reply] = open(&mut kernel, &first, port);
    let out = later.clone().ttl(63).source(UNDERLAY.address);
    check(&mut kernel, FromEndpoint, &later, Expected::redirected(&out).entry(used_by(&later, original)));

    // The response.
    let first = Frame::udp(&INTERNET, &A, 53, 5000).checksummed().fragment(0, true);
    let back = response(&first, port);
    let reply = used_by(&back, reply);
    check(&mut kernel, FromNetdev, &back, Expected::redirected(&delivered(&first)).entry(reply));
    let later = Frame::ipv4(&INTERNET, &A, UDP, &[8; 16]).fragment(2, false);
    let back = later.clone().destination(UNDERLAY.address).on_underlay();
    let expected = Expected::redirected(&delivered(&later)).entry(used_by(&back, reply));
    check(&mut kernel, FromNetdev, &back, expected);

    let key =
        FragmentKey { src: A.address, dst: INTERNET.address, id_be: [0x12, 0x34], protocol: UDP, pad: 0 };
    let ports = FragmentPorts { src_port_be: 5000u16.to_be_bytes(), dst_port_be: 53u16.to_be_bytes() };
    assert_eq!(kernel.get(map_name::FRAGMENTS_V4, &key), Some(ports));
}
