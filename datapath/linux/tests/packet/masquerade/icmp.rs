//! ICMP errors about masqueraded flows.

use datapath_abi::DropReason;
use datapath_linux::object::Program::{FromEndpoint, FromNetdev};

use super::{delivered, masquerading_kernel, open, port};
use crate::{
    check::check,
    expected::{Expected, used_by},
    frame::Frame,
    nodeport::ROUTER,
    wire::{L4_OFFSET, PORT_UNREACHABLE, UDP, fragmentation_needed},
    world::{A, GATEWAY, INTERNET, UNDERLAY},
};

#[test]
fn masquerade_icmp_error_quotes_the_request_of_the_endpoint() {
    let mut kernel = masquerading_kernel!();
    let flows = [
        Frame::syn(&A, &INTERNET),
        Frame::udp(&A, &INTERNET, 5000, 53),
        Frame::echo_request(&A, &INTERNET, 77),
    ];
    for request in flows {
        let port = port(&request, 0);
        let [_, mut reply] = open(&mut kernel, &request, port);
        let outside = request.clone().ttl(60).source(UNDERLAY.address).source_port(port);
        let inside = request.clone().ttl(60);
        for (from, error) in [(ROUTER, fragmentation_needed(1400)), (INTERNET.address, PORT_UNREACHABLE)] {
            let received = outside.icmp_error(error, from).on_underlay();
            let out = delivered(&inside.icmp_error(error, from)).quoting_checksum_of(&received);
            reply = used_by(&received, reply);
            check(&mut kernel, FromNetdev, &received, Expected::redirected(&out).entry(reply));
        }
    }
}

#[test]
fn masquerade_translates_icmp_errors_that_endpoints_send() {
    let mut kernel = masquerading_kernel!();
    let request = Frame::udp(&A, &INTERNET, 5000, 53);
    let port = port(&request, 0);
    let [original, _] = open(&mut kernel, &request, port);
    let inside = Frame::udp(&INTERNET, &A, 53, 5000);
    let outside = inside.clone().destination(UNDERLAY.address).destination_port(port);
    let error = inside.icmp_error(PORT_UNREACHABLE, A.address).macs(A.src_mac, A.dst_mac);
    let out = outside.icmp_error(PORT_UNREACHABLE, UNDERLAY.address).macs(A.src_mac, A.dst_mac).ttl(63);
    check(&mut kernel, FromEndpoint, &error, Expected::redirected(&out).entry(used_by(&error, original)));
}

#[test]
fn masquerade_leaves_icmp_errors_about_unknown_flows_to_the_host() {
    let mut kernel = masquerading_kernel!();
    let sent = Frame::udp(&UNDERLAY, &INTERNET, 61_500, 53);
    let error = sent.icmp_error(fragmentation_needed(1400), INTERNET.address).on_underlay();
    check(&mut kernel, FromNetdev, &error, Expected::unspec(&error));
    for length in [8, 12, 28, 35] {
        let cut = error.clone().payload(&error.bytes()[L4_OFFSET..][..length]);
        check(&mut kernel, FromNetdev, &cut, Expected::unspec(&cut));
    }
}

#[test]
fn masquerade_rejects_packets_longer_than_the_underlay_mtu() {
    let mut kernel = masquerading_kernel!();
    let long = Frame::ipv4(&A, &INTERNET, UDP, &[0; 1481]).source_port(5000);
    let error = long.icmp_reject(fragmentation_needed(1500), GATEWAY.address);
    let expected =
        Expected::rejected(&long, &error, DropReason::TooBig).identities(A.identity, INTERNET.identity);
    check(&mut kernel, FromEndpoint, &long, expected);
}
