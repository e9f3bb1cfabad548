//! ICMP errors: those that the programs send, and those about a flow.

use datapath_abi::{
    BUDGET_WINDOW_NS, Direction::Egress, DropReason, ERRORS_PER_WINDOW, NodeConfig, counter_slot,
};
use datapath_linux::object::Program::{FromEndpoint, FromTunnel};

use crate::{
    check::check,
    clock::coarse_ns,
    expected::{Expected, pair, used_by},
    frame::Frame,
    kernel::TC_ACT_REDIRECT,
    populated_kernel,
    wire::{ESP, PORT_UNREACHABLE, TTL_EXCEEDED, UDP, fragmentation_needed, icmp_type},
    world::*,
};

const POD_MTU_BYTES: u16 = CONFIG.pod_mtu_bytes as u16;

#[test]
fn icmp_time_exceeded_is_sent_to_an_endpoint() {
    let mut kernel = populated_kernel!();
    for ttl in [0, 1] {
        for frame in [
            Frame::syn(&A, &B).ttl(ttl),
            Frame::udp(&A, &B, 40_000, 33_434).checksummed().ttl(ttl),
            Frame::echo_request(&A, &B, 7).ttl(ttl),
            Frame::udp(&A, &B, 1, 2).payload(&[9; 1200]).ttl(ttl),
        ] {
            let error = frame.icmp_reject(TTL_EXCEEDED, GATEWAY.address);
            let expected = Expected::rejected(&frame, &error, DropReason::TtlExceeded)
                .identities(A.identity, B.identity);
            check(&mut kernel, FromEndpoint, &frame, expected);
        }
    }
}

#[test]
fn icmp_time_exceeded_is_sent_through_the_tunnel() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&R, &A).ttl(1);
    let error = frame.icmp_reject(TTL_EXCEEDED, GATEWAY.address).macs(R.dst_mac, R.src_mac);
    let expected = Expected::rejected(&frame, &error, DropReason::TtlExceeded)
        .identities(R.identity, A.identity)
        .tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &frame, expected);
}

#[test]
fn icmp_errors_are_not_sent_about_fragments_options_unknown_protocols_and_errors() {
    let mut kernel = populated_kernel!();
    let about = Frame::udp(&B, &A, 1, 2);
    let error = about.icmp_error(PORT_UNREACHABLE, A.address).macs(A.src_mac, A.dst_mac);
    for frame in [
        Frame::syn(&A, &B).options(1).ttl(1),
        Frame::ipv4(&A, &B, UDP, &[7; 32]).fragment(9, false).ttl(1),
        Frame::ipv4(&A, &B, ESP, &[7; 4]).ttl(1),
        error.ttl(1),
    ] {
        let expected = Expected::dropped(&frame, DropReason::TtlExceeded).identities(A.identity, B.identity);
        check(&mut kernel, FromEndpoint, &frame, expected);
    }
}

#[test]
fn icmp_errors_are_limited_to_the_rate_of_a_host() {
    let mut kernel = populated_kernel!();
    let frame = Frame::syn(&A, &B).ttl(1);
    let before = coarse_ns();
    let mut errors = 0;
    for _ in 0..3 * ERRORS_PER_WINDOW {
        errors += u64::from(kernel.run(FromEndpoint, &frame, None).code == TC_ACT_REDIRECT);
    }
    let windows = (coarse_ns() - before) / BUDGET_WINDOW_NS + 2;
    assert!(errors >= u64::from(ERRORS_PER_WINDOW), "{errors}");
    assert!(errors <= windows * u64::from(ERRORS_PER_WINDOW), "{errors} in {windows}");
    let dropped = kernel.snapshot().counters[&counter_slot(DropReason::TtlExceeded as u8, Egress)].0;
    assert_eq!(dropped, 3 * u64::from(ERRORS_PER_WINDOW), "each is counted");
}

#[test]
fn icmp_fragmentation_needed_is_sent_for_packets_longer_than_the_tunnel_mtu() {
    let mut kernel = populated_kernel!();
    let most = usize::from(POD_MTU_BYTES) - 20;
    let fits = Frame::ipv4(&A, &R, UDP, &vec![0; most]);
    let expected = Expected::redirected(&fits.clone().towards(&R)).new_flow(&fits, &A, &R);
    check(&mut kernel, FromEndpoint, &fits, expected);

    let long = Frame::ipv4(&A, &R, UDP, &vec![0; most + 1]);
    let error = long.icmp_reject(fragmentation_needed(POD_MTU_BYTES), GATEWAY.address);
    let expected = Expected::rejected(&long, &error, DropReason::TooBig).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &long, expected);
    // A sender that allows fragmentation does not expect the error.
    let fragmentable = long.fragment(0, false);
    let expected = Expected::dropped(&fragmentable, DropReason::TooBig).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &fragmentable, expected);
    // The MTU is not configured.
    configure(&mut kernel, NodeConfig { pod_mtu_bytes: 0, ..CONFIG });
    let expected = Expected::redirected(&fragmentable.clone().towards(&R))
        .entry(used_by(&fragmentable, pair(&fits, &A, &R)[0]));
    check(&mut kernel, FromEndpoint, &fragmentable, expected);
}

#[test]
fn icmp_error_belongs_to_the_flow_that_it_quotes() {
    let mut kernel = populated_kernel!();
    // R sends to a port that A does not have.
    let request = Frame::udp(&R, &A, 5000, 53);
    let arrived = request.clone().towards(&A).ttl(63);
    let expected = Expected::redirected(&arrived).new_flow(&request, &R, &A).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &request, expected);
    let [original, reply] = pair(&request, &R, &A);

    let error = arrived.icmp_error(PORT_UNREACHABLE, A.address).macs(A.src_mac, A.dst_mac);
    let reply = used_by(&error, reply);
    let expected = Expected::redirected(&error.clone().towards(&R)).entry(reply);
    check(&mut kernel, FromEndpoint, &error, expected);

    // The other direction: the gateway of R's node reports a link with a smaller MTU behind it.
    let answer = Frame::udp(&A, &R, 53, 5000);
    let error = answer.icmp_error(fragmentation_needed(1400), GATEWAY_OF_5.address);
    let expected = Expected::redirected(&error.clone().towards(&A).ttl(63))
        .entry(used_by(&error, original))
        .tunnel(tunnel_from(&GATEWAY_OF_5));
    check(&mut kernel, FromTunnel, &error, expected);
}

#[test]
fn icmp_error_with_a_spoofed_source_is_dropped() {
    let mut kernel = populated_kernel!();
    let request = Frame::udp(&R, &A, 5000, 53);
    for (key, entry) in pair(&request, &R, &A) {
        kernel.set_flow((key, entry));
    }
    // The error's source belongs to another node than R.
    let answer = Frame::udp(&A, &R, 53, 5000);
    let error = answer.icmp_error(fragmentation_needed(1400), AT_6.address);
    let expected =
        Expected::dropped(&error, DropReason::InnerSource).identities(R.identity, 0).tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &error, expected);
    // From A's device, with B's address.
    let error = request.icmp_error(PORT_UNREACHABLE, B.address).macs(A.src_mac, A.dst_mac);
    let expected = Expected::dropped(&error, DropReason::SourceSpoofed).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &error, expected);
}

#[test]
fn icmp_error_about_an_unknown_flow_is_a_flow_of_its_own() {
    let mut kernel = populated_kernel!();
    let unknown = Frame::udp(&R, &A, 5000, 53).icmp_error(PORT_UNREACHABLE, A.address);
    let unknown = unknown.macs(A.src_mac, A.dst_mac);
    let cut = unknown.clone().payload(&[icmp_type::UNREACHABLE, 3, 0, 0, 0, 0, 0, 0, 0x45, 0]);
    let expected = Expected::redirected(&unknown.clone().towards(&R)).new_flow(&unknown, &A, &R);
    check(&mut kernel, FromEndpoint, &unknown, expected);
    let original = used_by(&cut, pair(&unknown, &A, &R)[0]);
    let expected = Expected::redirected(&cut.clone().towards(&R)).entry(original);
    check(&mut kernel, FromEndpoint, &cut, expected);
}
