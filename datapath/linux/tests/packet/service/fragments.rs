//! Fragmented datagrams to and from a service.

use datapath_linux::object::Program::{FromEndpoint, FromTunnel};

use super::{PORT, VIP, backend, install, open, reverse_dnat};
use crate::{
    check::check,
    expected::{Expected, used_by},
    frame::Frame,
    populated_kernel,
    wire::UDP,
    world::{A, R, tunnel_from},
};

#[test]
fn service_fragments_follow_the_first() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let first = Frame::udp(&A, &VIP, 5000, PORT).fragment(0, true);
    let [original, reply] = open(&mut kernel, &first, &r);
    let later = Frame::ipv4(&A, &VIP, UDP, &[7; 24]).fragment(2, false);
    let out = later.clone().destination(R.address).towards(&R);
    check(&mut kernel, FromEndpoint, &later, Expected::redirected(&out).entry(used_by(&later, original)));
    // The response, through the tunnel.
    let first = Frame::udp(&R, &A, r.port, 5000).fragment(0, true);
    let out = reverse_dnat(&first).towards(&A).ttl(63);
    let reply = used_by(&first, reply);
    let expected = Expected::redirected(&out).entry(reply).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &first, expected);
    let later = Frame::ipv4(&R, &A, UDP, &[7; 24]).fragment(2, false);
    let out = later.clone().source(VIP.address).towards(&A).ttl(63);
    let expected = Expected::redirected(&out).entry(used_by(&later, reply)).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &later, expected);
}
