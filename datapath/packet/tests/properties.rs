//! What holds for every packet.

use datapath_packet::{Ipv4, Start, Transport, Wire, ports, tcp_state};
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
    fn hop_keeps_the_checksum_right(mut bytes in any::<[u8; 20]>(), ttl in 2u8..) {
        bytes[8] = ttl;
        bytes[10..12].fill(0);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());

        let after = to_bytes(from_bytes(bytes).next_hop().expect("hops are left"));

        prop_assert_eq!(after[8], ttl - 1);
        prop_assert_eq!(checksum(&after), 0, "sum over header and checksum is 0 when right");
    }

    #[test]
    fn accepted_headers_fit(bytes in any::<[u8; 20]>(), available in 0usize..70_000) {
        if let Ok(header_bytes) = from_bytes(bytes).header_bytes(available) {
            prop_assert!((20..=60).contains(&header_bytes) && header_bytes <= available);
        }
    }

    #[test]
    fn directions_agree_on_the_state(one in any::<u8>(), other in any::<u8>()) {
        prop_assert_eq!(tcp_state(one, other), tcp_state(other, one));
    }

    #[test]
    fn echo_ids_survive_reversal(code in any::<u8>(), rest in any::<[u8; 6]>()) {
        let with_type = |kind: u8| {
            let [a, b, c, d, e, f] = rest;
            ports(Transport::Icmp, Start([kind, code, a, b, c, d, e, f]))
        };
        let (request, reply) = (with_type(8), with_type(0));
        prop_assert_eq!((request.0, request.1), (reply.1, reply.0));
    }
}
