//! What endpoints send to the world gets the node's underlay address and a port of our own as source.
//!
//! A port is taken by the answering half of a flow: its key is the world's address and port with ours. So the flow
//! table is the table of ports, too, and what is evicted or collected there is free again.

use aya_ebpf::{
    bindings::BPF_F_CURRENT_NETNS,
    helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use datapath_abi::{DropReason, FlowKey, NodeConfig, V4, flow_flags, node_flags};
use datapath_packet::{TCP, TRIES, UDP, flow_hash, is_answer_to, is_translatable, masquerade_port, opens};

use crate::{lookup, maps::FLOWS_V4, packet::Packet, service};

/// Whether what endpoints send to this address of the world is masqueraded.
#[inline(always)]
pub fn is_wanted(config: &NodeConfig, destination: V4) -> bool {
    config.flags & node_flags::MASQUERADE != 0 && !lookup::is_unmasqueraded(destination)
}

/// The ports of flows that get this node as their source, where masquerade does not say: those of its own default.
const PORTS: (u16, u16) = (61_000, 65_535);

/// Stands for no port. (Of an `Option` the compiler would spill what was never written, which the verifier refuses.)
pub const NO_PORT: [u8; 2] = [0; 2];

/// The port for the flow that `packet.key` speaks of, which gets `source` as its source: the one that it has, if either
/// half of it is left, else one that is free. [`NO_PORT`] for an answer to somebody who spoke first, and to the endpoint's
/// own address.
///
/// # Errors
/// [`DropReason::Fragment`], [`DropReason::MasqueradeProtocol`], [`DropReason::MasqueradePorts`].
#[inline(always)]
pub fn port_of(packet: &Packet, config: &NodeConfig, source: V4) -> Result<[u8; 2], DropReason> {
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
    let port_be = choose(packet, config, source, had);
    if port_be == NO_PORT {
        return Err(DropReason::MasqueradePorts);
    }
    Ok(port_be)
}

/// The port that the flow has (`had`, or that of its answering half), or one that is free; else [`NO_PORT`].
#[inline(never)]
fn choose(packet: &Packet, config: &NodeConfig, source: V4, had: [u8; 2]) -> [u8; 2] {
    let key = &packet.key;
    let mut answer = FlowKey {
        src: key.dst,
        dst: source,
        src_port_be: key.dst_port_be,
        dst_port_be: had,
        protocol: key.protocol,
        pad: [0; 3],
    };
    if had != NO_PORT {
        let slot = &answer;
        // SAFETY: as in `port_of`.
        match unsafe { FLOWS_V4.get(slot) } {
            Some(entry) if !is_answer_to(entry, key) => {}
            _ => return had,
        }
    }
    // A connection that is under way may have lost the half by which it is known here, and not the other: it is
    // looked for at all tries. A new flow takes the first port that is free.
    let is_new = key.protocol != TCP || opens(packet.tcp_flags);
    let hash = flow_hash(key);
    let (min, max) = match config.masquerade_port_min {
        0 => PORTS,
        min => (min, config.masquerade_port_max),
    };
    let mut free = NO_PORT;
    let mut attempt = 0;
    while attempt < TRIES {
        let port = masquerade_port(hash, min, max, attempt);
        attempt += 1;
        answer.dst_port_be = port.to_be_bytes();
        let slot = &answer;
        // SAFETY: as in `port_of`.
        match unsafe { FLOWS_V4.get(slot) } {
            Some(entry) => {
                if is_answer_to(entry, key) {
                    return answer.dst_port_be;
                }
            }
            None => {
                if free == NO_PORT && !has_socket(packet, &answer) {
                    free = answer.dst_port_be;
                    if is_new {
                        return free;
                    }
                }
            }
        }
    }
    free
}

/// `bpf_sock_tuple` for IPv4.
#[repr(C)]
struct Tuple {
    src: V4,
    dst: V4,
    src_port_be: [u8; 2],
    dst_port_be: [u8; 2],
}

/// Whether the node itself has a socket that packets with this key are for.
#[inline(always)]
pub fn has_socket(packet: &Packet, key: &FlowKey<V4>) -> bool {
    let mut tuple =
        Tuple { src: key.src, dst: key.dst, src_port_be: key.src_port_be, dst_port_be: key.dst_port_be };
    let context = packet.skb().cast();
    let tuple = (&raw mut tuple).cast();
    let namespace = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: the context is the kernel's, the tuple is of the size given; what is found is given back.
    unsafe {
        let socket = match key.protocol {
            TCP => bpf_skc_lookup_tcp(context, tuple, size_of::<Tuple>() as u32, namespace, 0),
            UDP => bpf_sk_lookup_udp(context, tuple, size_of::<Tuple>() as u32, namespace, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}
