//! What endpoints send to the world gets the node's underlay address and a port of our own as source.
//!
//! A port is taken by the answering half of a flow: its key is the world's address and port with ours. So the flow
//! table is the table of ports, too, and what is evicted or collected there is free again.

use aya_ebpf::{
    bindings::BPF_F_CURRENT_NETNS,
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use datapath_abi::{DropReason, FlowEntry, FlowKey, NodeConfig, V4, flow_flags, node_flags};
use datapath_packet::{TCP, TRIES, UDP, flow_hash, is_answer_to, is_translatable, masquerade_port, opens};

use crate::{context::Packet, decide::flow::now_ns, lookup, maps::FLOWS_V4, service};

/// Whether what endpoints send to this address of the world is masqueraded.
#[inline(always)]
pub fn is_wanted(config: &NodeConfig, destination: V4) -> bool {
    config.flags & node_flags::MASQUERADE != 0 && !lookup::is_unmasqueraded(destination)
}

/// The ports of flows that get this node as their source, where masquerade does not say: those of its own default.
const PORTS: (u16, u16) = (61_000, 65_535);

#[inline(always)]
fn range(config: &NodeConfig) -> (u16, u16) {
    match config.masquerade_port_min {
        0 => PORTS,
        min => (min, config.masquerade_port_max),
    }
}

/// Whether a port is one of the range.
#[inline(always)]
pub fn is_port(config: &NodeConfig, port_be: [u8; 2]) -> bool {
    let (port, (min, max)) = (u16::from_be_bytes(port_be), range(config));
    min <= port && port <= max
}

/// Stands for no port. (Of an `Option` the compiler would spill what was never written, which the verifier refuses.)
pub const NO_PORT: [u8; 2] = [0; 2];

/// The port for the flow that `packet.key` speaks of, which gets `source` as its source: the one that it has, if either
/// half of it is left, else one that is free. [`NO_PORT`] for an answer to somebody who spoke first, and to the endpoint's
/// own address.
///
/// # Errors
/// [`DropReason::Fragment`], [`DropReason::MasqueradeProtocol`], [`DropReason::MasqueradePorts`].
#[inline(always)]
pub fn port_of(packet: &mut Packet, config: &NodeConfig, source: V4) -> Result<[u8; 2], DropReason> {
    let key = &packet.key;
    let mut had = NO_PORT;
    let known_as = if service::is_served(packet) { &packet.asked } else { key };
    // SAFETY: as in `flows::Flow::entry`; read at once.
    if let Some(old) = unsafe { FLOWS_V4.get(known_as) }
        && !(old.flags & flow_flags::ENDED != 0 && opens(packet.tcp_flags))
    {
        if old.flags & flow_flags::REWRITE_SRC != 0 {
            if old.rewrite_src == source {
                had = old.rewrite_src_port_be;
            }
        } else if old.flags & flow_flags::REPLY != 0 {
            return Ok(NO_PORT);
        }
    }
    if packet.is_rest && key.src_port_be == [0; 2] && key.dst_port_be == [0; 2] {
        return Err(DropReason::Fragment);
    }
    let is_reply_or_error = key.protocol == datapath_packet::ICMP && key.src_port_be == [0; 2];
    if !is_translatable(key.protocol) || is_reply_or_error {
        return Err(DropReason::MasqueradeProtocol);
    }
    choose(packet, config, source, had);
    match packet.own_port_be {
        NO_PORT => Err(DropReason::MasqueradePorts),
        port_be => Ok(port_be),
    }
}

/// How long the flow of a port must have been over before another takes the port, if none is free: late packets of the
/// former would be taken for the latter's. Linux too uses ports of its own again after a second (`tcp_tw_reuse`).
const REST_NS: u64 = 1_000_000_000;

/// Notes the port that the flow has (`had`, or that of its answering half), or one that is free, or one whose connection has
/// ended; else [`NO_PORT`].
#[inline(never)]
fn choose(packet: &mut Packet, config: &NodeConfig, source: V4, had: [u8; 2]) {
    let key = &packet.key;
    let mut answer = FlowKey {
        src: key.dst,
        dst: source,
        src_port_be: key.dst_port_be,
        dst_port_be: had,
        protocol: key.protocol,
        pad: [0; 3],
    };
    packet.own_port_be = NO_PORT;
    packet.ended_port_be = NO_PORT;
    packet.is_port_chosen = false;
    if had != NO_PORT {
        keep(packet, &answer);
    }
    let hash = flow_hash(&packet.key);
    let (min, max) = range(config);
    let mut attempt = 0;
    while attempt < TRIES && !packet.is_port_chosen {
        let port = masquerade_port(hash, min, max, attempt);
        attempt += 1;
        answer.dst_port_be = port.to_be_bytes();
        take(packet, &answer);
    }
    if packet.own_port_be == NO_PORT && packet.ended_port_be != NO_PORT {
        answer.dst_port_be = packet.ended_port_be;
        take_over(packet, &answer);
    }
}

/// Keeps the port that the flow has, unless somebody else has it now.
#[inline(never)]
fn keep(packet: &mut Packet, answer: &FlowKey<V4>) {
    // SAFETY: as in `port_of`.
    match unsafe { FLOWS_V4.get(answer) } {
        Some(entry) if !is_answer_to(entry, &packet.key) => {}
        _ => {
            packet.own_port_be = answer.dst_port_be;
            packet.is_port_chosen = true;
        }
    }
}

/// Takes a port if the flow has it, or if it is free. What comes of it is in the scratch memory, so that the verifier does
/// not follow each outcome by itself through the tries that come after.
#[inline(never)]
fn take(packet: &mut Packet, answer: &FlowKey<V4>) {
    // SAFETY: as in `port_of`.
    match unsafe { FLOWS_V4.get(answer) } {
        Some(entry) => {
            if is_answer_to(entry, &packet.key) {
                packet.own_port_be = answer.dst_port_be;
                packet.is_port_chosen = true;
            } else if packet.ended_port_be == NO_PORT && opens(packet.tcp_flags) && rests(entry) {
                packet.ended_port_be = answer.dst_port_be;
            }
        }
        None => {
            // A service's ports are not the programs' alone, like those of the node's sockets.
            if packet.own_port_be == NO_PORT
                && !lookup::is_service_port(answer.protocol, answer.dst_port_be)
                && !has_socket(packet, answer)
            {
                packet.own_port_be = answer.dst_port_be;
                // A connection that is under way may have lost the half by which it is known here, and not the other: it is
                // looked for at all tries. A new flow takes the first port that is free.
                packet.is_port_chosen = answer.protocol != TCP || opens(packet.tcp_flags);
            }
        }
    }
}

/// Takes the port of a connection that has ended. Both its halves go: what comes late belongs to nobody.
#[inline(never)]
fn take_over(packet: &mut Packet, answer: &FlowKey<V4>) {
    // SAFETY: as in `port_of`.
    if let Some(entry) = unsafe { FLOWS_V4.get(answer) }
        && rests(entry)
        && !has_socket(packet, answer)
    {
        // Whichever is gone already was evicted.
        let _ = FLOWS_V4.remove(entry.reverse_key(answer));
        let _ = FLOWS_V4.remove(answer);
        packet.own_port_be = answer.dst_port_be;
    }
}

/// Whether the entry's connection has ended some time ago. Another CPU may have seen a packet of it after our look at the clock.
#[inline(always)]
fn rests(entry: &FlowEntry) -> bool {
    entry.flags & flow_flags::ENDED != 0 && now_ns().saturating_sub(entry.last_seen_ns) > REST_NS
}

/// Whether a packet to the node is for a port of the range that nobody has: neither a socket, nor (its entry was looked for
/// before) a flow.
#[inline(never)]
pub fn is_answer_to_nobody(packet: &Packet, config: &NodeConfig) -> bool {
    matches!(packet.key.protocol, TCP | UDP)
        && is_port(config, packet.key.dst_port_be)
        && !has_socket(packet, &packet.key)
}

/// `bpf_sock_tuple` for IPv4.
#[repr(C)]
struct Tuple {
    src: V4,
    dst: V4,
    src_port_be: [u8; 2],
    dst_port_be: [u8; 2],
}

impl Tuple {
    #[inline(always)]
    fn of(key: &FlowKey<V4>) -> Self {
        Self { src: key.src, dst: key.dst, src_port_be: key.src_port_be, dst_port_be: key.dst_port_be }
    }
}

/// The node's own network namespace.
const NAMESPACE: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

const NO_SOCKET: u32 = 0;
const OPEN: u32 = 1;
const CONNECTED: u32 = 2;

/// Whether the node itself has a socket that packets with this key are for.
#[inline(always)]
pub fn has_socket(packet: &Packet, key: &FlowKey<V4>) -> bool {
    socket(packet, key) != NO_SOCKET
}

/// Whether it has one that speaks with the sender and nobody else.
#[inline(always)]
pub fn has_connection(packet: &Packet, key: &FlowKey<V4>) -> bool {
    socket(packet, key) == CONNECTED
}

/// In a function for each protocol: what is found is of another type to the verifier.
#[inline(always)]
fn socket(packet: &Packet, key: &FlowKey<V4>) -> u32 {
    match key.protocol {
        TCP => tcp_socket(packet, key),
        UDP => udp_socket(packet, key),
        _ => NO_SOCKET,
    }
}

#[inline(never)]
fn tcp_socket(packet: &Packet, key: &FlowKey<V4>) -> u32 {
    let mut tuple = Tuple::of(key);
    let tuple = (&raw mut tuple).cast();
    // SAFETY: the context is the kernel's, the tuple is of the size given; what is found is given back.
    unsafe {
        let socket = bpf_skc_lookup_tcp(packet.skb().cast(), tuple, size_of::<Tuple>() as u32, NAMESPACE, 0);
        if socket.is_null() {
            return NO_SOCKET;
        }
        let found = if (*socket).dst_port == 0 { OPEN } else { CONNECTED };
        bpf_sk_release(socket.cast());
        found
    }
}

#[inline(never)]
fn udp_socket(packet: &Packet, key: &FlowKey<V4>) -> u32 {
    let mut tuple = Tuple::of(key);
    let tuple = (&raw mut tuple).cast();
    // SAFETY: as in `tcp_socket`.
    unsafe {
        let socket = bpf_sk_lookup_udp(packet.skb().cast(), tuple, size_of::<Tuple>() as u32, NAMESPACE, 0);
        if socket.is_null() {
            return NO_SOCKET;
        }
        let found = if (*socket).dst_port == 0 { OPEN } else { CONNECTED };
        bpf_sk_release(socket.cast());
        found
    }
}
