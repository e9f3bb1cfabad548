//! What holds for every packet.

use datapath_packet::{Ipv4, Transport, TransportStart, Wire, native_checksum, ports, requoted, tcp_state};
use proptest::prelude::*;

/// The checksum of a header computed from scratch (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

fn from_bytes(bytes: [u8; 20]) -> Ipv4 {
    assert_wire::<Ipv4>();
    // SAFETY: `Wire`: every bit pattern is valid, alignment 1, and the sizes are equal.
    unsafe { core::mem::transmute(bytes) }
}

fn to_bytes(header: Ipv4) -> [u8; 20] {
    // SAFETY: `Wire`: no padding, and the sizes are equal.
    unsafe { core::mem::transmute(header) }
}

fn assert_wire<T: Wire>() {}

proptest! {
    #[test]
    fn decrement_ttl_keeps_the_checksum_right(mut bytes in any::<[u8; 20]>(), ttl in 2u8..) {
        bytes[8] = ttl;
        bytes[10..12].fill(0);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());

        let after = to_bytes(from_bytes(bytes).decrement_ttl().expect("hops are left"));

        prop_assert_eq!(after[8], ttl - 1);
        prop_assert_eq!(checksum(&after), 0, "sum over header and checksum is 0 when right");
    }

    #[test]
    fn with_addresses_keeps_the_checksum_right(
        mut bytes in any::<[u8; 20]>(),
        src in any::<[u8; 4]>(),
        dst in any::<[u8; 4]>(),
    ) {
        bytes[10..12].fill(0);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());

        let header = from_bytes(bytes).with_addresses(src, dst);

        prop_assert_eq!((header.src, header.dst), (src, dst));
        prop_assert_eq!(checksum(&to_bytes(header)), 0, "sum over header and checksum is 0 when right");
    }

    #[test]
    fn requoted_icmp_error_keeps_its_checksum_right(
        bytes in any::<[u8; 36]>(),
        is_source in any::<bool>(),
        address in any::<[u8; 4]>(),
        port in any::<[u8; 2]>(),
    ) {
        let mut bytes = bytes;
        bytes[2..4].fill(0);
        let sum = checksum(&bytes);
        let ip = from_bytes(bytes[8..28].try_into().expect("20 bytes"));
        let at = if is_source { 28 } else { 30 };
        let old_port = [bytes[at], bytes[at + 1]];

        let (ip, sum) = requoted(sum.to_be_bytes(), &ip, is_source, address, (old_port, port));

        bytes[2..4].copy_from_slice(&sum);
        bytes[8..28].copy_from_slice(&to_bytes(ip));
        bytes[at..at + 2].copy_from_slice(&port);
        prop_assert_eq!(checksum(&bytes), 0);
        prop_assert_eq!(if is_source { ip.src } else { ip.dst }, address);
    }

    #[test]
    fn own_headers_have_right_checksums(src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), bytes in any::<[u8; 36]>()) {
        prop_assert_eq!(checksum(&to_bytes(Ipv4::own(1, src, dst, 36))), 0);
        let native: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum();
        prop_assert_eq!(native_checksum(native), checksum(&bytes).to_be_bytes());
    }

    #[test]
    fn header_bytes_fit_the_packet(bytes in any::<[u8; 20]>(), available in 0usize..70_000) {
        if let Ok(header_bytes) = from_bytes(bytes).header_bytes(available) {
            prop_assert!((20..=60).contains(&header_bytes) && header_bytes <= available);
        }
    }

    #[test]
    fn tcp_state_is_the_same_for_both_directions(one in any::<u8>(), other in any::<u8>()) {
        prop_assert_eq!(tcp_state(one, other), tcp_state(other, one));
    }

    #[test]
    fn ports_of_an_echo_survive_reversal(code in any::<u8>(), rest in any::<[u8; 6]>()) {
        let with_type = |kind: u8| {
            let [a, b, c, d, e, f] = rest;
            ports(Transport::Icmp, TransportStart([kind, code, a, b, c, d, e, f]))
        };
        let (request, reply) = (with_type(8), with_type(0));
        prop_assert_eq!((request.0, request.1), (reply.1, reply.0));
    }
}
