//! Source ports that the node takes for external clients.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use datapath_abi::{DropReason, FlowEntry, FlowKey, FrontendEntry, FrontendKey, V4, frontend_kind, map_name};
use datapath_linux::object::Program::FromNetdev;
use datapath_packet::PORT_ATTEMPTS;

use super::{CLIENT, install, open_local, open_remote, tcp_conversation};
use crate::{
    check::check,
    expected::Expected,
    frame::{CLIENT_PORT, Frame},
    namespace, populated_kernel,
    service::{SERVICE, backend, full_nat_entries, nat_port, reserve_port},
    wire::{TCP, tcp_flag::ACK},
    world::{A, GATEWAY, PARTNER, R, UNDERLAY},
};

#[test]
fn nodeport_without_a_free_port_drops_until_one_is_free() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let (request, _) = tcp_conversation(&r, &GATEWAY);
    let occupied: Vec<FlowKey<V4>> = (0..PORT_ATTEMPTS)
        .map(|attempt| {
            let port = nat_port(&request, &r, attempt);
            let [_, (key, entry)] = full_nat_entries(&request, &PARTNER, &r, GATEWAY.address, port);
            kernel.set_flow((key, FlowEntry { rewrite_dst: PARTNER.address, ..entry }));
            key
        })
        .collect();
    let expected =
        Expected::dropped(&request, DropReason::MasqueradePorts).identities(CLIENT.identity, R.identity);
    check(&mut kernel, FromNetdev, &request, expected);
    let last = occupied[occupied.len() - 1];
    kernel.remove_flow(&last);
    open_remote(&mut kernel, &request, &r, u16::from_be_bytes(last.dst_port_be));
}

#[test]
fn nodeport_never_takes_a_port_of_a_service() {
    let mut kernel = populated_kernel!();
    let r = backend(1, R);
    install(&mut kernel, &[r]);
    let (request, _) = tcp_conversation(&r, &GATEWAY);
    reserve_port(&mut kernel, TCP, nat_port(&request, &r, 0));
    let port = nat_port(&request, &r, 1);
    open_remote(&mut kernel, &request, &r, port);
}

#[test]
fn nodeport_leaves_connections_of_the_host_that_are_older_than_the_service() {
    if !namespace::enter() {
        return;
    }
    let mut kernel = populated_kernel!();
    let listener = TcpListener::bind((Ipv4Addr::from(UNDERLAY.address), 0)).expect("listen");
    let server = listener.local_addr().expect("an address");
    let stream = TcpStream::connect(server).expect("connect");
    let port = stream.local_addr().expect("an address").port();
    install(&mut kernel, &[backend(1, A)]);
    for port in [port, server.port()] {
        reserve_port(&mut kernel, TCP, port);
        let key = FrontendKey { address: [0; 4], port_be: port.to_be_bytes(), protocol: TCP, pad: 0 };
        let frontend = FrontendEntry { service: SERVICE, kind: frontend_kind::NODE_PORT };
        kernel.set(map_name::FRONTENDS_V4, &key, &frontend);
    }
    let own = Frame::tcp(&UNDERLAY, &UNDERLAY, server.port(), port, ACK).on_underlay();
    check(&mut kernel, FromNetdev, &own, Expected::unspec(&own));
    // A listening socket has lost its port to the service.
    reserve_port(&mut kernel, TCP, server.port());
    let request = Frame::tcp(&CLIENT, &UNDERLAY, CLIENT_PORT, server.port(), ACK).on_underlay();
    open_local(&mut kernel, &request, &backend(1, A));
}
