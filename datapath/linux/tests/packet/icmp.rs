//! ICMP errors: those that programs send, and those that belong to the flow that they are about.

use datapath_abi::{
    Direction::{Egress, Ingress},
    DropReason, ERRORS_PER_WINDOW, NodeConfig, counter_slot, map_name,
};
use datapath_linux::object::Program::{FromEndpoint, FromOverlay};

use crate::{
    check::{Verdict::*, *},
    frame::{Frame, UDP},
    furnished,
    world::*,
};

const TIME_EXCEEDED: u8 = 11;
const UNREACHABLE: u8 = 3;
const PORT: u8 = 3;
const TOO_BIG: u8 = 4;

#[test]
fn who_sends_with_no_hop_left_is_told() {
    let mut kernel = furnished!();
    for ttl in [0, 1] {
        for frame in [
            Frame::syn(&A, &B).ttl(ttl),
            Frame::udp(&A, &B, 40_000, 33_434).checksummed().ttl(ttl),
            Frame::echo_request(&A, &B, 7).ttl(ttl),
            Frame::udp(&A, &B, 1, 2).payload(&[9; 1200]).ttl(ttl),
        ] {
            let told = frame.refused(TIME_EXCEEDED, 0, 0, GATEWAY.address);
            let expected = Expected::refused(&frame, &told, DropReason::TtlExceeded, Egress)
                .identities(A.identity, B.identity);
            check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
        }
    }
}

#[test]
fn who_sends_through_the_tunnel_is_told_through_it() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&R, &A).ttl(1);
    let told = frame.refused(TIME_EXCEEDED, 0, 0, GATEWAY.address).macs(R.dst_mac, R.src_mac);
    let expected = Expected::refused(&frame, &told, DropReason::TtlExceeded, Ingress)
        .identities(R.identity, A.identity)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &frame.bytes(), expected);
}

#[test]
fn some_are_not_told() {
    let mut kernel = furnished!();
    let about = Frame::udp(&B, &A, 1, 2);
    let error = about.error_about(A.address, UNREACHABLE, PORT, 0).macs(A.src_mac, A.dst_mac);
    for frame in [
        Frame::syn(&A, &B).options(1).ttl(1),
        Frame::ipv4(&A, &B, UDP, &[7; 32]).fragment(9, false).ttl(1),
        Frame::ipv4(&A, &B, 50, &[7; 4]).ttl(1),
        error.ttl(1),
    ] {
        let expected =
            Expected::dropped(&frame, DropReason::TtlExceeded, Egress).identities(A.identity, B.identity);
        check(&mut kernel, FromEndpoint, &frame.bytes(), expected);
    }
}

#[test]
fn not_more_are_told_than_a_host_would() {
    let mut kernel = furnished!();
    let frame = Frame::syn(&A, &B).ttl(1);
    let before = coarse_ns();
    let mut told = 0;
    for _ in 0..3 * ERRORS_PER_WINDOW {
        told += u64::from(kernel.run(FromEndpoint, &frame.bytes(), None).code == Redirect as u32);
    }
    let windows = (coarse_ns() - before) / datapath_abi::BUDGET_WINDOW_NS + 2;
    assert!(told >= u64::from(ERRORS_PER_WINDOW), "{told}");
    assert!(told <= windows * u64::from(ERRORS_PER_WINDOW), "{told} in {windows}");
    let dropped = kernel.snapshot().counters[&counter_slot(DropReason::TtlExceeded as u8, Egress)].0;
    assert_eq!(dropped, 3 * u64::from(ERRORS_PER_WINDOW), "each is counted");
}

#[test]
fn too_long_for_the_tunnel() {
    let mut kernel = furnished!();
    let most = usize::from(1450_u16) - 20;
    let fits = Frame::ipv4(&A, &R, UDP, &vec![0; most]);
    let expected =
        Expected::forwarded(Redirect, fits.clone().towards(&R).bytes(), Egress).new_flow(&fits, &A, &R);
    check(&mut kernel, FromEndpoint, &fits.bytes(), expected);

    let long = Frame::ipv4(&A, &R, UDP, &vec![0; most + 1]);
    let told = long.refused(UNREACHABLE, TOO_BIG, 1450, GATEWAY.address);
    let expected =
        Expected::refused(&long, &told, DropReason::TooBig, Egress).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &long.bytes(), expected);
    // One that may be cut is not told: its sender would not listen.
    let may_be_cut = long.fragment(0, false);
    let expected =
        Expected::dropped(&may_be_cut, DropReason::TooBig, Egress).identities(A.identity, R.identity);
    check(&mut kernel, FromEndpoint, &may_be_cut.bytes(), expected);
    // Nobody has said what fits.
    kernel.set(map_name::CONFIG, &0u32, &NodeConfig { pod_mtu_bytes: 0, ..CONFIG });
    let expected = Expected::forwarded(Redirect, may_be_cut.clone().towards(&R).bytes(), Egress)
        .flow(and_packet(pair(&fits, &A, &R)[0], &may_be_cut));
    check(&mut kernel, FromEndpoint, &may_be_cut.bytes(), expected);
}

#[test]
fn an_error_is_a_packet_of_its_flow() {
    let mut kernel = furnished!();
    // R asks A, who has no such port.
    let request = Frame::udp(&R, &A, 5000, 53);
    let arrived = request.clone().towards(&A).ttl(63);
    let expected = Expected::forwarded(Redirect, arrived.bytes(), Ingress)
        .new_flow(&request, &R, &A)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &request.bytes(), expected);
    let [forward, reverse] = pair(&request, &R, &A);

    let error = arrived.error_about(A.address, UNREACHABLE, PORT, 0).macs(A.src_mac, A.dst_mac);
    let reverse = and_packet(reverse, &error);
    let expected = Expected::forwarded(Redirect, error.clone().towards(&R).bytes(), Egress).flow(reverse);
    check(&mut kernel, FromEndpoint, &error.bytes(), expected);

    // And the other way, from the gateway of R's node: too long for something behind it.
    let answer = Frame::udp(&A, &R, 53, 5000);
    let error = answer.error_about(GATEWAY_OF_5.address, UNREACHABLE, TOO_BIG, 1400);
    let expected = Expected::forwarded(Redirect, error.clone().towards(&A).ttl(63).bytes(), Ingress)
        .flow(and_packet(forward, &error))
        .origin(Some(tunnel_from(&GATEWAY_OF_5)));
    check(&mut kernel, FromOverlay, &error.bytes(), expected);
}

#[test]
fn an_error_from_another_proves_nothing() {
    let mut kernel = furnished!();
    let request = Frame::udp(&R, &A, 5000, 53);
    for (key, entry) in pair(&request, &R, &A) {
        kernel.set(map_name::FLOWS_V4, &key, &entry);
    }
    // Behind another node than R's.
    let answer = Frame::udp(&A, &R, 53, 5000);
    let error = answer.error_about(AT_6.address, UNREACHABLE, TOO_BIG, 1400);
    let expected = Expected::dropped(&error, DropReason::InnerSource, Ingress)
        .identities(400, 0)
        .origin(Some(tunnel_from(&R)));
    check(&mut kernel, FromOverlay, &error.bytes(), expected);
    // From A's device with another's address.
    let error = request.error_about(B.address, UNREACHABLE, PORT, 0).macs(A.src_mac, A.dst_mac);
    let expected = Expected::dropped(&error, DropReason::SourceSpoofed, Egress).identities(A.identity, 0);
    check(&mut kernel, FromEndpoint, &error.bytes(), expected);
}

#[test]
fn an_error_about_nothing_that_is_known_is_a_flow_of_its_own() {
    let mut kernel = furnished!();
    let unknown = Frame::udp(&R, &A, 5000, 53).error_about(A.address, UNREACHABLE, PORT, 0);
    let unknown = unknown.macs(A.src_mac, A.dst_mac);
    let cut = unknown.clone().payload(&[3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0]);
    let expected =
        Expected::forwarded(Redirect, unknown.clone().towards(&R).bytes(), Egress).new_flow(&unknown, &A, &R);
    check(&mut kernel, FromEndpoint, &unknown.bytes(), expected);
    let forward = and_packet(pair(&unknown, &A, &R)[0], &cut);
    let expected = Expected::forwarded(Redirect, cut.clone().towards(&R).bytes(), Egress).flow(forward);
    check(&mut kernel, FromEndpoint, &cut.bytes(), expected);
}
