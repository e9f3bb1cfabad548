//! Ports for source NAT: a flow that gets this node's address as its source gets a port of a range of our own with it.
//!
//! The reply entry of a flow holds the port: its key is the other end's address and port with ours. So the flow table is the
//! table of ports, too, and an entry that is evicted or collected frees its port.

use datapath_abi::{DropReason, FlowEntry, FlowKey, NodeConfig, V4, flow_flags, node_flags};
use datapath_packet::{
    ICMP, PORT_ATTEMPTS, TCP, UDP, flow_hash, is_reply_to, is_translatable, masquerade_port, opens,
};

use crate::{clock::now_ns, context::Packet, lookup, maps::FLOWS_V4, nat::node_socket};

/// Stands for no port. (Of an `Option` the compiler would spill what was never written, which the verifier refuses.)
pub const NO_PORT: [u8; 2] = [0; 2];

/// The range where the configuration names none: the configuration's own default.
const DEFAULT_PORTS: (u16, u16) = (61_000, 65_535);

/// How long a flow must have ended before another flow takes its port, if none is free: late packets of the former would be
/// taken for the latter's. Linux, too, uses its own ports again after a second (`tcp_tw_reuse`).
const PORT_REUSE_DELAY_NS: u64 = 1_000_000_000;

/// Whether what endpoints send to an address outside is masqueraded.
#[inline(always)]
pub fn is_masqueraded(config: &NodeConfig, destination: V4) -> bool {
    config.flags & node_flags::MASQUERADE != 0 && !lookup::is_unmasqueraded(destination)
}

#[inline(always)]
fn range(config: &NodeConfig) -> (u16, u16) {
    match config.masquerade_port_min {
        0 => DEFAULT_PORTS,
        min => (min, config.masquerade_port_max),
    }
}

/// Whether a port is one of the range.
#[inline(always)]
pub fn is_port(config: &NodeConfig, port_be: [u8; 2]) -> bool {
    let (port, (min, max)) = (u16::from_be_bytes(port_be), range(config));
    min <= port && port <= max
}

/// Finds the port for the flow with the key `packet.key`, whose source becomes `packet.snat_address`: the port that the flow
/// has, if either of its entries is left, else a free one. No port ([`NO_PORT`]) for a reply to somebody who spoke first to
/// the endpoint's own address.
///
/// # Errors
/// [`DropReason::Fragment`], [`DropReason::MasqueradeProtocol`], [`DropReason::MasqueradePorts`].
#[inline(always)]
pub fn allocate_port(packet: &mut Packet, config: &NodeConfig) -> Result<(), DropReason> {
    let key = &packet.key;
    let mut held = NO_PORT;
    let known_as = if packet.backend.id != 0 { &packet.pre_dnat_key } else { key };
    // SAFETY: as in `Flow::entry`; read at once.
    if let Some(old) = unsafe { FLOWS_V4.get(known_as) }
        && !(old.flags & flow_flags::ENDED != 0 && opens(packet.tcp_flags))
    {
        if old.flags & flow_flags::REWRITE_SRC != 0 {
            if old.rewrite_src == packet.snat_address {
                held = old.rewrite_src_port_be;
            }
        } else if old.flags & flow_flags::REPLY != 0 {
            return Ok(());
        }
    }
    if packet.is_later_fragment && key.src_port_be == [0; 2] && key.dst_port_be == [0; 2] {
        return Err(DropReason::Fragment);
    }
    let is_reply_or_error = key.protocol == ICMP && key.src_port_be == [0; 2];
    if !is_translatable(key.protocol) || is_reply_or_error {
        return Err(DropReason::MasqueradeProtocol);
    }
    search(packet, config, held);
    if packet.snat_port_be == NO_PORT { Err(DropReason::MasqueradePorts) } else { Ok(()) }
}

/// Tries the port that the flow holds by its own entry, then ports by the flow's hash, then the port of an ended flow.
#[inline(never)]
fn search(packet: &mut Packet, config: &NodeConfig, held: [u8; 2]) {
    let key = &packet.key;
    let mut reply_key = FlowKey {
        src: key.dst,
        dst: packet.snat_address,
        src_port_be: key.dst_port_be,
        dst_port_be: held,
        protocol: key.protocol,
        pad: [0; 3],
    };
    if held != NO_PORT {
        try_held(packet, &reply_key);
    }
    let hash = flow_hash(&packet.key);
    let (min, max) = range(config);
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS && !packet.is_port_chosen {
        let port = masquerade_port(hash, min, max, attempt);
        attempt += 1;
        reply_key.dst_port_be = port.to_be_bytes();
        try_port(packet, &reply_key);
    }
    if packet.snat_port_be == NO_PORT && packet.reusable_port_be != NO_PORT {
        reply_key.dst_port_be = packet.reusable_port_be;
        reuse_port(packet, &reply_key);
    }
}

/// Keeps the port that the flow's own entry names, unless another flow has it now.
#[inline(never)]
fn try_held(packet: &mut Packet, reply_key: &FlowKey<V4>) {
    // SAFETY: as in `Flow::entry`; read at once.
    match unsafe { FLOWS_V4.get(reply_key) } {
        Some(entry) if !is_reply_to(entry, &packet.key) => {}
        _ => {
            packet.snat_port_be = reply_key.dst_port_be;
            packet.is_port_chosen = true;
        }
    }
}

/// Takes a port if the flow holds it by its reply entry, or if it is free. The outcome goes by the packet context, so that
/// the verifier does not follow each outcome through the attempts that come after.
#[inline(never)]
fn try_port(packet: &mut Packet, reply_key: &FlowKey<V4>) {
    // SAFETY: as in `Flow::entry`; read at once.
    match unsafe { FLOWS_V4.get(reply_key) } {
        Some(entry) => {
            if is_reply_to(entry, &packet.key) {
                packet.snat_port_be = reply_key.dst_port_be;
                packet.is_port_chosen = true;
            } else if packet.reusable_port_be == NO_PORT && opens(packet.tcp_flags) && is_reusable(entry) {
                packet.reusable_port_be = reply_key.dst_port_be;
            }
        }
        None => {
            // Neither services' ports nor those of the node's sockets are free.
            if packet.snat_port_be == NO_PORT
                && !lookup::is_service_port(reply_key.protocol, reply_key.dst_port_be)
                && !node_socket::exists(packet, reply_key)
            {
                packet.snat_port_be = reply_key.dst_port_be;
                // A connection that is under way may have lost the entry by which it is known here, and not its reply entry:
                // all attempts look for that. A new flow takes the first port that is free.
                packet.is_port_chosen = reply_key.protocol != TCP || opens(packet.tcp_flags);
            }
        }
    }
}

/// Takes the port of an ended flow. Both its entries go: what comes late belongs to nobody.
#[inline(never)]
fn reuse_port(packet: &mut Packet, reply_key: &FlowKey<V4>) {
    // SAFETY: as in `Flow::entry`; read at once.
    if let Some(entry) = unsafe { FLOWS_V4.get(reply_key) }
        && is_reusable(entry)
        && !node_socket::exists(packet, reply_key)
    {
        // An entry that is gone already was evicted.
        let _ = FLOWS_V4.remove(entry.reverse_key(reply_key));
        let _ = FLOWS_V4.remove(reply_key);
        packet.snat_port_be = reply_key.dst_port_be;
    }
}

/// Whether the entry's flow has ended some time ago. Another CPU may have seen a packet of it after this CPU read the clock.
#[inline(always)]
fn is_reusable(entry: &FlowEntry) -> bool {
    entry.flags & flow_flags::ENDED != 0 && now_ns().saturating_sub(entry.last_seen_ns) > PORT_REUSE_DELAY_NS
}

/// Whether a packet to the node, whose flow is not known, goes to a port of the range at which the node has no socket.
#[inline(never)]
pub fn is_unclaimed(packet: &Packet, config: &NodeConfig) -> bool {
    matches!(packet.key.protocol, TCP | UDP)
        && is_port(config, packet.key.dst_port_be)
        && !node_socket::exists(packet, &packet.key)
}
