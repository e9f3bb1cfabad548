//! ICMP errors about flows of a service.

use datapath_linux::object::Program::FromTunnel;

use super::{PORT, VIP, backend, dnat, install, open};
use crate::{
    check::check,
    expected::{Expected, used_by},
    frame::Frame,
    populated_kernel,
    wire::fragmentation_needed,
    world::{A, GATEWAY_OF_5, R, tunnel_from},
};

#[test]
fn service_icmp_error_quotes_the_frontend() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let request = Frame::udp(&A, &VIP, 5000, PORT).checksummed();
    let [_, reply] = open(&mut kernel, &request, &r);
    let too_big = fragmentation_needed(1400);
    // An error of the backend itself comes from the frontend; a router keeps its address.
    for (from, shown) in [(R, VIP.address), (GATEWAY_OF_5, GATEWAY_OF_5.address)] {
        kernel.set_flow(reply);
        let error = dnat(&request, &r).icmp_error(too_big, from.address).macs(A.src_mac, [2; 6]);
        let out = request.icmp_error(too_big, shown).towards(&A).ttl(63).quoting_checksum_of(&error);
        let expected = Expected::redirected(&out).entry(used_by(&error, reply)).tunnel(tunnel_from(&from));
        check(&mut kernel, FromTunnel, &error, expected);
    }
}
