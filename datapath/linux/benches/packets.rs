//! Nanoseconds that a packet costs in each program, for a known flow and for a first packet, in one run with
//! programs that do nothing: `cargo bench -p datapath-linux`. Compare within a run only.
//!
//! Small tables, warm caches: what the code costs, not what memory does.

#[expect(dead_code, reason = "the tests' kernel can do more than benches need")]
#[path = "../tests/packet/frame/mod.rs"]
mod frame;
#[expect(dead_code, reason = "the tests' kernel can do more than benches need")]
#[path = "../tests/packet/kernel/mod.rs"]
mod kernel;
#[expect(dead_code, reason = "the tests' routes are more than benches need")]
#[path = "../tests/packet/namespace.rs"]
mod namespace;
#[expect(dead_code, reason = "the tests' headers are more than benches need")]
#[path = "../tests/packet/wire.rs"]
mod wire;
#[expect(dead_code, reason = "the tests' kernel can do more than benches need")]
#[path = "../tests/packet/world.rs"]
mod world;

use std::time::Duration;

use datapath_abi::{
    BLOCK_SLOTS, BackendEntry, FrontendEntry, FrontendKey, NodeConfig, ServiceEntry, SlotBlock, SlotsKey,
    map_name, node_flags, service_flags, service_port_bit,
};
use datapath_linux::object::Program;

use crate::{
    frame::{Frame, UNDERLAY_SENDER},
    kernel::{Kernel, Tunnel, kernel_or_skip},
    world::{A, B, CONFIG, GATEWAY, INTERNET, Peer, R, UNDERLAY, populate_maps, tunnel_from},
};

/// Runs in one go, on one packet: as many hops as its TTL of 64 has.
const RUNS: u32 = 60;
/// Of which the median is taken.
const ROUNDS: usize = 2_001;

fn main() {
    // Masquerade asks the kernel's routes.
    if !namespace::enter() {
        return;
    }
    let Some(mut kernel) = kernel_or_skip() else { return };
    populate_maps(&mut kernel);

    let nothing = median(|| kernel.time_nothing(&Frame::syn(&A, &R).bytes(), None, RUNS));
    let tunnel = Some(tunnel_from(&R));
    let behind_tunnel = median(|| kernel.time_nothing(&Frame::syn(&A, &R).bytes(), tunnel, RUNS));
    println!("{:<28} {nothing:>6} ns", "nothing");
    println!("{:<28} {behind_tunnel:>6} ns", "nothing, with tunnel key");

    println!("{:<28} {:>9} {:>9} {:>14}", "over that", "known", "first", "known, of it");
    let here: [(&str, Program, &Peer, &Peer); 6] = [
        ("from_endpoint, here", Program::FromEndpoint, &A, &B),
        ("from_endpoint, other node", Program::FromEndpoint, &A, &R),
        ("from_endpoint, this node", Program::FromEndpoint, &A, &GATEWAY),
        ("from_endpoint, world", Program::FromEndpoint, &A, &INTERNET),
        ("to_endpoint", Program::ToEndpoint, &GATEWAY, &A),
        ("from_host, other node", Program::FromHost, &GATEWAY, &R),
    ];
    for (name, program, from, to) in here {
        row(&mut kernel, name, program, (from, to), None, nothing);
    }
    for (name, to) in [("from_tunnel, endpoint", &A), ("from_tunnel, this node", &GATEWAY)] {
        row(&mut kernel, name, Program::FromTunnel, (&R, to), tunnel, behind_tunnel);
    }
    service_rows(&mut kernel);
    let flags = node_flags::MASQUERADE;
    let config = NodeConfig { flags, underlay_ifindex: namespace::UNDERLAY_IFINDEX, ..CONFIG };
    kernel.set(map_name::CONFIG, &0u32, &config);
    masquerade_rows(&mut kernel);
    let host = Frame::ack(&INTERNET, &UNDERLAY).on_underlay().bytes();
    let left = median(|| kernel.time(Program::FromNetdev, &host, None, RUNS));
    println!("{:<28} {:>6} ns", "from_netdev, the node's own", left.saturating_sub(nothing));
    let (word, bit) = service_port_bit(6, 80);
    kernel.set(map_name::SERVICE_PORTS, &word, &bit);
    let left = median(|| kernel.time(Program::FromNetdev, &host, None, RUNS));
    println!("{:<28} {:>6} ns", "  at a service's port", left.saturating_sub(nothing));
    let frontend = Peer { address: [10, 201, 0, 1], ..INTERNET };
    let frame = Frame::ack(&INTERNET, &frontend).on_underlay();
    for (name, backend) in [("from_netdev, service here", B), ("from_netdev, service there", R)] {
        service_row(&mut kernel, name, Program::FromNetdev, &frame, &backend);
    }
    early_rows(&mut kernel, &frame);
}

/// The same flow before the stack: its packets, and its answers out of the tunnel. `frame` is as a classifier gets it.
fn early_rows(kernel: &mut Kernel, frame: &Frame) {
    const OURS: [u8; 6] = [2, 9, 9, 9, 9, 1];
    namespace::ip("link set under0 address 02:09:09:09:09:01");
    namespace::ip("neigh add 192.0.2.5 lladdr 02:09:09:09:09:05 dev under0 nud permanent");
    namespace::ip("neigh add 192.0.2.254 lladdr 02:09:09:09:09:fe dev under0 nud permanent");
    kernel.attach_xdp(namespace::UNDERLAY_IFINDEX);
    let entry =
        BackendEntry { service: 1, address: R.address, port_be: [31, 144], ..BackendEntry::default() };
    kernel.set(map_name::BACKENDS_V4, &1u32, &entry);
    kernel.time(Program::FromNetdev, &frame.bytes(), None, 1);
    let port = u16::from_be_bytes(kernel.flow(&frame.key()).expect("the flow is known").rewrite_src_port_be);
    let answer = Frame::tcp(&R, &GATEWAY, 8080, port, 0x10);
    let tunnel = Some(tunnel_from(&R));
    let behind_tunnel = median(|| kernel.time_nothing(&answer.bytes(), tunnel, 1));
    let known = median(|| kernel.time(Program::FromTunnel, &answer.bytes(), tunnel, 1));
    println!("{:<28} {:>6} ns", "from_tunnel, its answer", known.saturating_sub(behind_tunnel));
    let mut payload = vec![0xc0, 1];
    payload.extend(world::TUNNEL_PORT.to_be_bytes());
    payload.extend((answer.len() as u16 + 16).to_be_bytes());
    payload.extend([0, 0, 8, 0, 0, 0]);
    payload.extend(&R.identity.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(answer.bytes());
    let node = Peer { address: world::NODE_5.address, ..INTERNET };
    let own = Frame::ack(&INTERNET, &UNDERLAY).destination_port(22);
    for (name, frame) in [
        ("xdp_entry, service there", frame.clone()),
        ("xdp_entry, its answer", Frame::ipv4(&node, &UNDERLAY, 17, &payload)),
        ("xdp_entry, the node's own", own),
    ] {
        let frame = frame.macs(OURS, UNDERLAY_SENDER).bytes();
        let is_carried = kernel.run_xdp(&frame, namespace::UNDERLAY_IFINDEX).code == 3;
        assert_eq!(is_carried, !name.ends_with("own"), "{name}");
        let base = median(|| kernel.time_nothing_xdp(&frame, namespace::UNDERLAY_IFINDEX));
        let known = median(|| kernel.time_xdp(&frame, namespace::UNDERLAY_IFINDEX));
        println!("{name:<28} {:>6} ns", known.saturating_sub(base));
    }
}

/// A flow to a service, whose backend is here or on another node. A run rewrites its packet, as with masquerade.
fn service_rows(kernel: &mut Kernel) {
    let frontend = Peer { address: [10, 201, 0, 1], ..INTERNET };
    let key = FrontendKey { address: frontend.address, port_be: [0, 80], protocol: 6, pad: 0 };
    kernel.set(map_name::FRONTENDS_V4, &key, &FrontendEntry { service: 1, kind: 0 });
    let (table, flags) = (1 << 32 | 1, service_flags::PRESENT);
    kernel.set(map_name::SERVICES, &1u32, &ServiceEntry { table, flags, ..ServiceEntry::default() });
    let mut slots = [0; BLOCK_SLOTS as usize];
    slots[0] = 1;
    kernel.set(map_name::SLOTS, &SlotsKey { table: 1, block: 0 }, &SlotBlock { slots });
    let frame = Frame::ack(&A, &frontend);
    for (name, backend) in [("from_endpoint, service here", B), ("from_endpoint, service there", R)] {
        service_row(kernel, name, Program::FromEndpoint, &frame, &backend);
    }
}

fn service_row(kernel: &mut Kernel, name: &str, program: Program, frame: &Frame, backend: &Peer) {
    let (packet, key) = (frame.bytes(), frame.key());
    let base = median(|| kernel.time_nothing(&packet, None, 1));
    let (address, port_be) = (backend.address, [31, 144]);
    let entry = BackendEntry { service: 1, address, port_be, ..BackendEntry::default() };
    kernel.set(map_name::BACKENDS_V4, &1u32, &entry);
    let forget = |kernel: &mut Kernel| {
        let entry = kernel.flow(&key).expect("the flow is known");
        kernel.remove_flow(&key);
        kernel.remove_flow(&entry.reverse_key(&key));
    };
    let first = median(|| {
        let time = kernel.time(program, &packet, None, 1);
        forget(kernel);
        time
    });
    kernel.events();
    kernel.time(program, &packet, None, 1);
    let known = median(|| kernel.time(program, &packet, None, 1));
    forget(kernel);
    println!("{name:<28} {:>6} ns {:>6} ns", known.saturating_sub(base), first.saturating_sub(base));
}

/// A masqueraded flow and its answers. A run rewrites its packet: each is on one of its own, and times one run.
fn masquerade_rows(kernel: &mut Kernel) {
    let frame = Frame::ack(&A, &INTERNET);
    let (packet, key) = (frame.bytes(), frame.key());
    let base = median(|| kernel.time_nothing(&packet, None, 1));
    let first = median(|| {
        let time = kernel.time(Program::FromEndpoint, &packet, None, 1);
        let entry = kernel.flow(&key).expect("the flow is known");
        kernel.remove_flow(&key);
        kernel.remove_flow(&entry.reverse_key(&key));
        time
    });
    kernel.events();
    kernel.time(Program::FromEndpoint, &packet, None, 1);
    let known = median(|| kernel.time(Program::FromEndpoint, &packet, None, 1));
    let entry = kernel.flow(&key).expect("the flow is known");
    let port = u16::from_be_bytes(entry.rewrite_src_port_be);
    let answer = Frame::ack(&INTERNET, &UNDERLAY).source_port(80).destination_port(port);
    let answer = answer.on_underlay().bytes();
    let back = median(|| kernel.time(Program::FromNetdev, &answer, None, 1));
    println!(
        "{:<28} {:>6} ns {:>6} ns",
        "from_endpoint, masquerade",
        known.saturating_sub(base),
        first.saturating_sub(base)
    );
    println!("{:<28} {:>6} ns", "from_netdev, its answer", back.saturating_sub(base));
}

fn row(
    kernel: &mut Kernel,
    name: &str,
    program: Program,
    (from, to): (&Peer, &Peer),
    tunnel: Option<Tunnel>,
    base: u128,
) {
    let frame = Frame::ack(from, to);
    let (packet, key) = (frame.bytes(), frame.key());
    let base_once = median(|| kernel.time_nothing(&packet, tunnel, 1));
    let first = median(|| {
        let time = kernel.time(program, &packet, tunnel, 1);
        kernel.remove_flow(&key);
        kernel.remove_flow(&key.reverse());
        time
    });
    kernel.events();
    kernel.time(program, &packet, tunnel, 1);
    let known = median(|| kernel.time(program, &packet, tunnel, RUNS));
    println!(
        "{name:<28} {:>6} ns {:>6} ns {:>13.1}x",
        known.saturating_sub(base),
        first.saturating_sub(base_once),
        known as f64 / base as f64
    );
}

/// The median of many times, nanoseconds.
fn median(mut time: impl FnMut() -> Duration) -> u128 {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| time().as_nanos()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}
