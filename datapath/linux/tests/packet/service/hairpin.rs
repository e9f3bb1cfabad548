//! An endpoint that is the backend of its own connection: both ends see the gateway.

use datapath_abi::FlowKey;
use datapath_linux::object::Program::FromEndpoint;

use super::{
    PORT, VIP, backend, conversations, dnat, evict, full_nat_entries, install, nat_port, pin_to_one_cpu,
    reverse_dnat,
};
use crate::{
    check::check,
    clock::wait_for_the_next_second,
    expected::{Expected, previous_epoch, used_by},
    frame::{CLIENT_PORT, Frame},
    kernel::TC_ACT_REDIRECT,
    populated_kernel,
    wire::tcp_flag::ACK,
    world::{A, GATEWAY},
};

#[test]
fn hairpin_translates_both_ends_and_keeps_its_port() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    for (request, response) in conversations(&a) {
        let port = nat_port(&request, &a, 0);
        let [original, reply] = full_nat_entries(&request, &A, &a, GATEWAY.address, port);
        let out = dnat(&request, &a).source(GATEWAY.address).source_port(port).towards(&A).ttl(63);
        let expected = Expected::redirected(&out).opens(&request, [original, reply]);
        check(&mut kernel, FromEndpoint, &request, expected);

        let response = response.destination(GATEWAY.address).destination_port(port);
        let client_port = u16::from_be_bytes(request.key().src_port_be);
        let back = reverse_dnat(&response).destination(A.address).destination_port(client_port);
        let back = back.towards(&A).ttl(63);
        let reply = used_by(&response, reply);
        check(&mut kernel, FromEndpoint, &response, Expected::redirected(&back).entry(reply));

        // Decided again in either direction, the flow keeps its port.
        kernel.set_flow(previous_epoch(reply));
        let expected = Expected::redirected(&back).entry(used_by(&response, reply));
        check(&mut kernel, FromEndpoint, &response, expected);
        kernel.set_flow(previous_epoch(original));
        let expected = Expected::redirected(&out).entry(used_by(&request, original));
        check(&mut kernel, FromEndpoint, &request, expected);
    }
}

#[test]
fn hairpin_survives_eviction_of_either_entry() {
    let mut kernel = populated_kernel!();
    pin_to_one_cpu();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let syn = Frame::syn(&A, &VIP);
    assert_eq!(kernel.run(FromEndpoint, &syn, None).code, TC_ACT_REDIRECT);
    let request = Frame::tcp(&A, &VIP, CLIENT_PORT, PORT, ACK);
    let original = kernel.flow(&syn.key()).expect("the flow is known");
    let (key, reply_key) = (syn.key(), original.reverse_key(&syn.key()));
    let port = u16::from_be_bytes(original.rewrite_src_port_be);
    let response = Frame::tcp(&A, &GATEWAY, a.port, port, ACK);
    let request_out = kernel.run(FromEndpoint, &request, None).bytes;
    let response_out =
        reverse_dnat(&response).destination(A.address).destination_port(CLIENT_PORT).towards(&A).ttl(63);

    // The unused entry is evicted first.
    evict(&mut kernel, &reply_key);
    assert!(kernel.flow(&key).is_some(), "the entry in use stays");
    let cases: [&[FlowKey<_>]; 4] = [&[], &[reply_key], &[key], &[key, reply_key]];
    for gone in cases {
        gone.iter().for_each(|key| kernel.remove_flow(key));
        wait_for_the_next_second();
        // The next packet finds the entry that is left: the response, if that is the reply direction's.
        if gone != [key] {
            let ran = kernel.run(FromEndpoint, &request, None);
            assert_eq!((ran.code, &ran.bytes), (TC_ACT_REDIRECT, &request_out), "{gone:?}");
        }
        let ran = kernel.run(FromEndpoint, &response, None);
        assert_eq!((ran.code, ran.bytes), (TC_ACT_REDIRECT, response_out.bytes()), "{gone:?}");
        assert!(kernel.flow(&key).is_some() && kernel.flow(&reply_key).is_some(), "{gone:?}");
    }
}
