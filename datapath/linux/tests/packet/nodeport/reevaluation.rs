//! Flows of external clients whose entries were lost or are out of date.

use datapath_abi::{DropReason, FlowEntry, SourceKind, service_flags};
use datapath_linux::object::Program::{FromEndpoint, FromNetdev, FromTunnel};

use super::{
    CLIENT, conversations, install, open_local, open_remote, tcp_conversation, through_tunnel, to_client,
    udp_conversation,
};
use crate::{
    check::check,
    clock::wait_for_the_next_second,
    expected::{Expected, next_epoch, previous_epoch, used_by},
    frame::{CLIENT_PORT, Frame},
    kernel::{TC_ACT_REDIRECT, Tunnel},
    populated_kernel,
    service::{PORT, VIP, backend, evict, nat_port, pin_to_one_cpu, set_flags},
    wire::tcp_flag::{ACK, SYN},
    world::{A, GATEWAY, NODE_5, R, bump_epoch, reset_epoch, tunnel_from},
};

#[test]
fn nodeport_entry_of_one_direction_restores_the_other() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let (request, response) = tcp_conversation(&r, &GATEWAY);
    let port = nat_port(&request, &r, 0);
    let response = response.destination_port(port);
    let [(key, original), reply] = open_remote(&mut kernel, &request, &r, port);
    // Without the original direction's entry, the client's next packet takes the port from the reply direction's.
    kernel.remove_flow(&key);
    let ack = Frame::tcp(&CLIENT, &VIP, CLIENT_PORT, PORT, ACK).on_underlay();
    let out = through_tunnel(&ack, &r, port);
    let once = FlowEntry { packets: 1, bytes: ack.len(), tcp_flags: ACK, ..original };
    check(&mut kernel, FromNetdev, &ack, Expected::redirected(&out).entry((key, once)));
    // Without the reply direction's entry, responses are dropped but not reset until the client's next packet.
    kernel.remove_flow(&reply.0);
    let expected = Expected::dropped(&response, DropReason::NoTranslation)
        .identities(R.identity, 0)
        .tunnel(tunnel_from(&R));
    check(&mut kernel, FromTunnel, &response, expected);
    wait_for_the_next_second();
    let twice = FlowEntry { packets: 2, bytes: 2 * ack.len(), ..once };
    check(&mut kernel, FromNetdev, &ack, Expected::redirected(&out).entry((key, twice)).entry(reply));
}

#[test]
fn nodeport_reply_decided_again_still_comes_from_the_frontend() {
    let mut kernel = populated_kernel!();
    let (a, r) = (backend(1, A), backend(1, R));
    install(&mut kernel, &[a]);
    for (request, response) in conversations(&a, &CLIENT).into_iter().take(2) {
        let [original, reply] = open_local(&mut kernel, &request, &a);
        bump_epoch(&mut kernel, A.address);
        let expected = Expected::redirected(&to_client(&response, &request).ttl(63))
            .entry(next_epoch(original))
            .entry(used_by(&response, next_epoch(reply)));
        check(&mut kernel, FromEndpoint, &response, expected);
        reset_epoch(&mut kernel, A.address);
    }
    install(&mut kernel, &[r]);
    for (request, response) in conversations(&r, &GATEWAY).into_iter().skip(2).take(2) {
        let port = nat_port(&request, &r, 0);
        let response = response.destination_port(port);
        let [original, reply] = open_remote(&mut kernel, &request, &r, port);
        bump_epoch(&mut kernel, R.address);
        let reply = used_by(&response, next_epoch(reply));
        let expected = Expected::redirected(&to_client(&response, &request).ttl(63))
            .entry(next_epoch(original))
            .entry(reply)
            .tunnel(tunnel_from(&R));
        check(&mut kernel, FromTunnel, &response, expected);
        // The same response from another node is dropped.
        kernel.set_flow(previous_epoch(reply));
        let another_node = Tunnel { identity: R.identity, underlay: [192, 0, 2, 6] };
        let expected = Expected::dropped(&response, DropReason::InnerSource)
            .identities(R.identity, 0)
            .tunnel(another_node);
        check(&mut kernel, FromTunnel, &response, expected);
        reset_epoch(&mut kernel, R.address);
    }
}

/// Whichever entry a full table evicts, the next packet of either direction is forwarded as before.
#[test]
fn nodeport_survives_eviction_of_either_entry() {
    let mut kernel = populated_kernel!();
    pin_to_one_cpu();
    for (at, flags) in [(A, 0), (R, 0), (R, service_flags::DSR)] {
        let backend = backend(1, at);
        install(&mut kernel, &[backend]);
        set_flags(&mut kernel, flags);
        let syn = Frame::tcp(&CLIENT, &VIP, CLIENT_PORT, PORT, SYN).on_underlay();
        let ack = Frame::tcp(&CLIENT, &VIP, CLIENT_PORT, PORT, ACK).on_underlay();
        assert_eq!(kernel.run(FromNetdev, &syn, None).code, TC_ACT_REDIRECT);
        let before = kernel.run(FromNetdev, &ack, None);
        let original = kernel.flow(&syn.key()).expect("the flow is known");
        let reply_key = original.reverse_key(&syn.key());
        let nat_port = u16::from_be_bytes(original.rewrite_src_port_be);
        let (response, program, tunnel) = match at.source.0 {
            SourceKind::Endpoint => {
                (Frame::tcp(&A, &CLIENT, backend.port, CLIENT_PORT, ACK), FromEndpoint, None)
            }
            _ => (Frame::tcp(&R, &GATEWAY, backend.port, nat_port, ACK), FromTunnel, Some(tunnel_from(&R))),
        };
        // First the table evicts the unused entry of the two; then both are gone.
        for both_gone in [false, true] {
            evict(&mut kernel, &reply_key);
            if both_gone {
                kernel.remove_flow(&syn.key());
            } else {
                assert!(kernel.flow(&syn.key()).is_some(), "the entry in use stays");
                wait_for_the_next_second();
            }
            let after = kernel.run(FromNetdev, &ack, None);
            assert_eq!(after, before, "{at:?}");
            // With direct server return, no response passes this node.
            if flags & service_flags::DSR == 0 {
                let out = to_client(&response, &ack).ttl(63).bytes();
                let ran = kernel.run(program, &response, tunnel);
                assert_eq!((ran.code, ran.bytes), (TC_ACT_REDIRECT, out), "{at:?}");
                // The entry was used, and would not be the next one to be evicted.
                kernel.remove_flow(&reply_key);
            }
        }
        kernel.remove_flow(&syn.key());
    }
}

/// The sending node knows its endpoint's identity first; the flow is decided again once.
#[test]
fn nodeport_learns_the_new_identity_of_a_backend_from_its_response() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let (request, response) = udp_conversation(&r, &GATEWAY);
    let port = nat_port(&request, &r, 0);
    let [(key, original), (reply_key, reply)] = open_remote(&mut kernel, &request, &r, port);
    let response = response.destination_port(port);
    let newer = Tunnel { identity: R.identity + 1, underlay: NODE_5.address };
    let original = FlowEntry { dst_identity: newer.identity, ..original };
    let reply = FlowEntry { src_identity: newer.identity, ..reply };
    let out = to_client(&response, &request).ttl(63);
    let expected = |reply| Expected::redirected(&out).entry(reply).tunnel(newer);
    let reply = used_by(&response, (reply_key, reply));
    check(&mut kernel, FromTunnel, &response, expected(reply).entry((key, original)));
    check(&mut kernel, FromTunnel, &response, expected(used_by(&response, reply)));
}
