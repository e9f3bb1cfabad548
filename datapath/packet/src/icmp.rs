//! ICMP errors (RFC 792): which flow they belong to, how they are translated and made.

use datapath_abi::{FlowKey, V4};

use crate::{
    Ipv4, TransportStart, checksum,
    transport::{Transport, ports},
    wire,
};

/// The header of an error. The beginning of the packet that the error is about follows.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// 3, 11 or 12.
    pub kind: u8,
    /// Code, by kind.
    pub code: u8,
    /// Over the whole message.
    pub checksum_be: [u8; 2],
    /// Zero.
    pub unused: [u8; 2],
    /// MTU of the next hop, where a packet was too big (RFC 1191).
    pub mtu_be: [u8; 2],
}

/// What an error must quote of the packet that it is about: an IP header and 8 bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The IP header.
    pub ip: Ipv4,
    /// The first bytes of the transport header.
    pub start: TransportStart,
}

wire! { IcmpError = 8, Quote = 28 }

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
const PORT_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;

/// Whether an ICMP message of this kind is about another packet.
#[inline(always)]
pub fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

impl Quote {
    /// The key of the direction opposite to the quoted packet's, in which the error goes. `None` for headers with options and
    /// for later fragments.
    #[inline(always)]
    pub fn reply_key(&self) -> Option<FlowKey<V4>> {
        if self.ip.version_length != 0x45 || self.ip.fragment_offset() != 0 {
            return None;
        }
        let (src_port_be, dst_port_be) = ports(Transport::of(self.ip.protocol), self.start);
        let quoted = FlowKey {
            src: self.ip.src,
            dst: self.ip.dst,
            src_port_be,
            dst_port_be,
            protocol: self.ip.protocol,
            pad: [0; 3],
        };
        Some(quoted.reverse())
    }
}

/// The quoted IP header with another source or destination, and the checksum of the error around it once the port of the same
/// end is replaced, too. The quoted transport checksum stays: nobody checks it.
#[inline(always)]
pub fn requoted(
    checksum_be: [u8; 2],
    ip: &Ipv4,
    is_source: bool,
    address: V4,
    (old_port_be, new_port_be): ([u8; 2], [u8; 2]),
) -> (Ipv4, [u8; 2]) {
    let new = if is_source { ip.with_addresses(address, ip.dst) } else { ip.with_addresses(ip.src, address) };
    let old_address = if is_source { ip.src } else { ip.dst };
    let sum = checksum::updated(checksum_be, checksum::words(old_address), checksum::words(address));
    let sum = checksum::updated(sum, [ip.checksum_be, old_port_be], [new.checksum_be, new_port_be]);
    (new, sum)
}

impl IcmpError {
    /// The packet's TTL is exceeded; without its checksum.
    pub const TIME_EXCEEDED: Self =
        Self { kind: TIME_EXCEEDED, code: 0, checksum_be: [0; 2], unused: [0; 2], mtu_be: [0; 2] };

    /// Nobody is at the port; without its checksum.
    pub const PORT_UNREACHABLE: Self = Self {
        kind: UNREACHABLE,
        code: PORT_UNREACHABLE,
        checksum_be: [0; 2],
        unused: [0; 2],
        mtu_be: [0; 2],
    };

    /// The packet is longer than `mtu_bytes` (fragmentation needed); without its checksum.
    #[inline(always)]
    pub const fn too_big(mtu_bytes: u16) -> Self {
        let mtu_be = mtu_bytes.to_be_bytes();
        Self { kind: UNREACHABLE, code: FRAGMENTATION_NEEDED, checksum_be: [0; 2], unused: [0; 2], mtu_be }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::UDP;

    const QUOTE: Quote = Quote {
        ip: Ipv4 {
            version_length: 0x45,
            tos: 0,
            total_bytes_be: [5, 220],
            id_be: [0; 2],
            fragment_be: [0x40, 0],
            ttl: 63,
            protocol: UDP,
            checksum_be: [0; 2],
            src: [192, 0, 2, 1],
            dst: [198, 51, 100, 9],
        },
        start: TransportStart([0xf0, 0, 0, 53, 5, 200, 0x12, 0x34]),
    };

    #[test]
    fn icmp_error_goes_in_the_direction_of_replies() {
        let key = QUOTE.reply_key().expect("a whole header");
        assert_eq!((key.src, key.src_port_be), ([198, 51, 100, 9], [0, 53]));
        assert_eq!((key.dst, key.dst_port_be), ([192, 0, 2, 1], [0xf0, 0]));
        let with_options = Quote { ip: Ipv4 { version_length: 0x46, ..QUOTE.ip }, ..QUOTE };
        assert_eq!(with_options.reply_key(), None);
        let rest = Quote { ip: Ipv4 { fragment_be: [0, 9], ..QUOTE.ip }, ..QUOTE };
        assert_eq!(rest.reply_key(), None);
    }
}
