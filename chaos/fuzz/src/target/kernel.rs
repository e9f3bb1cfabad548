//! Input from the kernel: events, map values, netlink, packets.

use std::mem::MaybeUninit;

use datapath_abi::{Direction, DropReason, EndpointEntry, EventKind, IpcacheEntry};
use datapath_linux::fuzzing;
use datapath_packet::{
    Arp, Ethernet, Ipv4, Owner, Tcp, Transport, TransportStart, Wire, arp_reply, check_tunnel_source,
    is_unicast, ports,
};
use node_observe::{BootTime, FlowEvent};

use super::Target;

/// A record of the event ring, up to the printed line.
pub const EVENT: Target = Target { name: "event", run: event, seeds: event_seeds, words: &[], rounds: 3_000 };

fn event(bytes: &[u8]) {
    let Some(event) = fuzzing::event(bytes) else { return };
    let Ok(event) = FlowEvent::decode(&event, BootTime { unix_us: 1_700_000_000_000_000 }) else { return };
    assert!(!event.to_string().is_empty());
    let text = serde_json::to_string(&event).expect("an event is JSON");
    assert_eq!(serde_json::from_str::<FlowEvent>(&text).ok(), Some(event), "{text}");
}

fn bytes_of(event: &datapath_abi::Event) -> Vec<u8> {
    let pointer = std::ptr::from_ref(event).cast::<u8>();
    // SAFETY: `Event` is `AbiBytes`: it has no padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(pointer, size_of::<datapath_abi::Event>()) }.to_vec()
}

fn event_seeds() -> Vec<Vec<u8>> {
    let mut drop = datapath_abi::Event {
        time_ns: 5_000_000,
        bytes: 74,
        src_identity: 300,
        ifindex: 7,
        outer_src_v4: [192, 0, 2, 1],
        src_port_be: 40_000u16.to_be_bytes(),
        dst_port_be: 80u16.to_be_bytes(),
        kind: EventKind::Drop as u8,
        reason: DropReason::SourceSpoofed as u8,
        direction: Direction::Ingress as u8,
        protocol: 6,
        family: 4,
        tcp_flags: 0x12,
        ..Default::default()
    };
    drop.src[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
    drop.dst[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 1, 5]);
    let new = datapath_abi::Event { kind: EventKind::FlowNew as u8, reason: 0, action: 2, ..drop };
    let end =
        datapath_abi::Event { kind: EventKind::FlowEnd as u8, packets: 9, reason: 0, family: 6, ..drop };
    vec![bytes_of(&drop), bytes_of(&new), bytes_of(&end)]
}

/// Map values as they are read back: a flow, an ipcache entry, endpoints.
pub const KERNEL_VALUES: Target = Target {
    name: "kernel-values",
    run: fuzzing::map_values,
    seeds: || vec![vec![1; 256], vec![0; 256]],
    words: &[],
    rounds: 3_000,
};

/// Netlink messages, one after the other.
pub const NETLINK: Target = Target {
    name: "netlink",
    run: |bytes| {
        fuzzing::netlink(bytes);
    },
    seeds: fuzzing::netlink_samples,
    words: &["eth0\0\0\0\0", "vxlan\0\0\0", "veth\0\0\0\0"],
    rounds: 5_000,
};

/// Sockets, as sock_diag describes them.
pub const SOCKETS: Target = Target {
    name: "sockets",
    run: |bytes| {
        fuzzing::sockets(bytes);
    },
    seeds: || vec![fuzzing::sockets_sample()],
    words: &[],
    rounds: 5_000,
};

/// Packet headers, as the programs read them.
pub const PACKET: Target = Target {
    name: "packet",
    run: packet,
    seeds: packet_seeds,
    words: &["\x08\x00E", "\x08\x06"],
    rounds: 5_000,
};

/// The header at the beginning of `rest`, which is shortened by it.
fn header<T: Wire>(rest: &mut &[u8]) -> Option<T> {
    let (bytes, behind) = rest.split_at_checked(size_of::<T>())?;
    *rest = behind;
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: both have the size of a `T`, and every bit pattern is a valid `T` (`Wire`).
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), bytes.len());
        Some(value.assume_init())
    }
}

fn packet(bytes: &[u8]) {
    let mut rest = bytes;
    let Some(ethernet) = header::<Ethernet>(&mut rest) else { return };
    let endpoint = EndpointEntry { address_v4: [10, 0, 0, 2], mac: ethernet.macs.src, ..Default::default() };
    if ethernet.ethertype_be == datapath_packet::ETHERTYPE_ARP {
        let Some(request) = header::<Arp>(&mut rest) else { return };
        if let Ok(reply) = arp_reply(&request, &endpoint, [10, 0, 0, 1]) {
            assert_eq!((reply.sender, reply.target), ([10, 0, 0, 1], endpoint.address_v4));
        }
        return;
    }
    let available = rest.len();
    let Some(ip) = header::<Ipv4>(&mut rest) else { return };
    let Ok(header_bytes) = ip.header_bytes(available) else { return };
    assert!((20..=60).contains(&header_bytes) && header_bytes <= available);
    assert!(ip.is_fragment() || ip.fragment_offset() == 0);
    if let Ok(next) = ip.decrement_ttl() {
        assert_eq!((next.ttl, next.src, next.dst), (ip.ttl - 1, ip.src, ip.dst));
    }
    if is_unicast(ip.dst) {
        assert!(!std::net::Ipv4Addr::from(ip.dst).is_multicast());
    }
    let mut behind = &bytes[size_of::<Ethernet>() + header_bytes..];
    let mut whole = behind;
    if let Some(start) = header::<TransportStart>(&mut behind) {
        ports(Transport::of(ip.protocol), start);
        let node = u32::from(start.0[0]);
        let source = IpcacheEntry { identity: u32::from(start.0[1]), node: u32::from(start.0[2]) };
        if check_tunnel_source(node, &Owner::of(Some(source)), u32::from(start.0[3])).is_ok() {
            assert_eq!(node, source.node, "from a node that has not this source");
        }
    }
    if let Some(tcp) = header::<Tcp>(&mut whole) {
        assert_eq!(
            datapath_packet::tcp_state(tcp.flags, ip.tos),
            datapath_packet::tcp_state(ip.tos, tcp.flags)
        );
    }
}

fn packet_seeds() -> Vec<Vec<u8>> {
    let ethernet = |kind: [u8; 2]| [&[2; 12], &kind[..]].concat();
    let ip = |protocol| [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 2, 10, 0, 1, 5];
    let tcp = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let arp = [0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1];
    vec![
        [&ethernet([8, 0])[..], &ip(6), &tcp].concat(),
        [&ethernet([8, 0])[..], &ip(1), &[8, 0, 0, 0, 0x12, 0x34, 0, 1], &[0; 12]].concat(),
        [&ethernet([8, 0])[..], &ip(17), &tcp].concat(),
        [&ethernet([8, 6])[..], &arp].concat(),
    ]
}
