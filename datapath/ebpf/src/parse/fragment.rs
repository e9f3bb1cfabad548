//! Fragments: only the first one of a datagram has ports, which are remembered for the later ones. Only translated flows
//! need them; the fragments of others are a flow without ports.

use datapath_abi::{FragmentKey, FragmentPorts, V4};

use crate::{context::Packet, maps::FRAGMENTS_V4};

/// Remembers the ports of a datagram's first fragment.
#[inline(always)]
pub fn remember_ports(packet: &Packet) {
    if packet.ip().is_fragment() && !packet.is_later_fragment {
        insert(packet);
    }
}

#[inline(never)]
fn insert(packet: &Packet) {
    let ports = FragmentPorts { src_port_be: packet.key.src_port_be, dst_port_be: packet.key.dst_port_be };
    // An LRU makes room. If it does not, the later fragments are dropped and counted as they come.
    let _ = FRAGMENTS_V4.insert(fragment_key(packet), ports, 0);
}

/// Gives a later fragment the ports of its datagram, if that belongs to a translated flow. Otherwise the ports stay zeros.
#[inline(always)]
pub fn find_ports(packet: &mut Packet) {
    if packet.is_later_fragment {
        find(packet);
    }
}

#[inline(never)]
fn find(packet: &mut Packet) {
    // SAFETY: copied at once; an LRU may give the entry to another datagram meanwhile, as it may any time before.
    if let Some(ports) = unsafe { FRAGMENTS_V4.get(fragment_key(packet)) } {
        packet.key.src_port_be = ports.src_port_be;
        packet.key.dst_port_be = ports.dst_port_be;
    }
}

#[inline(always)]
fn fragment_key(packet: &Packet) -> FragmentKey<V4> {
    FragmentKey {
        src: packet.key.src,
        dst: packet.key.dst,
        id_be: packet.ip().id_be,
        protocol: packet.key.protocol,
        pad: 0,
    }
}
