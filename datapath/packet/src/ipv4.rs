//! The IPv4 header (RFC 791).

use datapath_abi::{DropReason, V4};

use crate::{checksum, transport::ICMP, wire};

/// The header without its options.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in words (4 bits).
    pub version_length: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Header and payload, bytes.
    pub total_bytes_be: [u8; 2],
    /// Identification: the same in all fragments of a datagram.
    pub id_be: [u8; 2],
    /// Flags (3 bits) and offset in units of 8 bytes.
    pub fragment_be: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol of what follows.
    pub protocol: u8,
    /// Checksum over the header and its options.
    pub checksum_be: [u8; 2],
    /// Source.
    pub src: V4,
    /// Destination.
    pub dst: V4,
}

wire! { Ipv4 = 20 }

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

impl Ipv4 {
    /// The header of a packet of this node's own: `payload_bytes` from `src` to `dst`.
    #[inline(always)]
    pub fn own(protocol: u8, src: V4, dst: V4, payload_bytes: u16) -> Self {
        // Internetwork control for ICMP, as Linux sends its own.
        let tos = if protocol == ICMP { 0xc0 } else { 0 };
        let mut header = Self {
            version_length: 0x45,
            tos,
            total_bytes_be: (payload_bytes + 20).to_be_bytes(),
            id_be: [0; 2],
            fragment_be: DONT_FRAGMENT.to_be_bytes(),
            ttl: 64,
            protocol,
            checksum_be: [0; 2],
            src,
            dst,
        };
        let sum = checksum::sum([[0x45, tos], header.total_bytes_be, header.fragment_be, [64, protocol]])
            + checksum::sum(checksum::words(src))
            + checksum::sum(checksum::words(dst));
        header.checksum_be = checksum::of(sum);
        header
    }

    /// Bytes of the header with its options, 20 to 60, checked against the packet's `available_bytes` after
    /// the Ethernet header (which may have padding behind it).
    ///
    /// # Errors
    /// [`DropReason::Malformed`]: not version 4, or lengths that contradict one another.
    #[inline(always)]
    pub fn header_bytes(&self, available_bytes: usize) -> Result<usize, DropReason> {
        let header_bytes = usize::from(self.version_length & 0x0f) * 4;
        let total_bytes = usize::from(u16::from_be_bytes(self.total_bytes_be));
        if self.version_length >> 4 != 4
            || header_bytes < 20
            || total_bytes < header_bytes
            || total_bytes > available_bytes
        {
            return Err(DropReason::Malformed);
        }
        Ok(header_bytes)
    }

    /// Where this fragment begins in its datagram, in units of 8 bytes; 0 in the first fragment and in a whole datagram.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes(self.fragment_be) & OFFSET_MASK
    }

    /// Whether the packet must not be fragmented (DF).
    #[inline(always)]
    pub fn dont_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment_be) & DONT_FRAGMENT != 0
    }

    /// Whether the packet is a fragment.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment_be) & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// The header with other addresses, its checksum updated as in [`Self::decrement_ttl`].
    #[inline(always)]
    #[must_use]
    pub fn with_addresses(mut self, src: V4, dst: V4) -> Self {
        use checksum::words;
        self.checksum_be = checksum::updated(self.checksum_be, words(self.src), words(src));
        self.checksum_be = checksum::updated(self.checksum_be, words(self.dst), words(dst));
        (self.src, self.dst) = (src, dst);
        self
    }

    /// The header with another type of service, its checksum updated as in [`Self::decrement_ttl`].
    #[inline(always)]
    #[must_use]
    pub fn with_tos(mut self, tos: u8) -> Self {
        let word = |tos| [[self.version_length, tos]];
        self.checksum_be = checksum::updated(self.checksum_be, word(self.tos), word(tos));
        self.tos = tos;
        self
    }

    /// The header with the TTL reduced by one. The checksum is updated and not computed anew (RFC 1141; `ip_decrease_ttl`): a
    /// header that arrived damaged stays damaged.
    ///
    /// # Errors
    /// [`DropReason::TtlExceeded`]: the TTL is used up.
    #[inline(always)]
    pub fn decrement_ttl(mut self) -> Result<Self, DropReason> {
        if self.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        let sum = u32::from(u16::from_be_bytes(self.checksum_be)) + 0x0100;
        self.checksum_be = ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes();
        self.ttl -= 1;
        Ok(self)
    }
}

/// Whether a single host may have the address: not "this network", loopback, multicast, reserved or broadcast.
#[inline(always)]
pub fn is_unicast(address: V4) -> bool {
    let first = address[0];
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Ipv4 = Ipv4 {
        version_length: 0x45,
        tos: 0,
        total_bytes_be: [0, 60],
        id_be: [0; 2],
        fragment_be: [0x40, 0],
        ttl: 64,
        protocol: 6,
        checksum_be: [0; 2],
        src: [10, 0, 1, 5],
        dst: [10, 0, 2, 5],
    };

    #[test]
    fn header_bytes_must_agree_with_the_packet() {
        let check = |header: Ipv4, available, expected| assert_eq!(header.header_bytes(available), expected);
        check(HEADER, 60, Ok(20));
        check(HEADER, 64, Ok(20)); // padding
        check(Ipv4 { version_length: 0x4f, ..HEADER }, 60, Ok(60));
        check(HEADER, 59, Err(DropReason::Malformed));
        check(Ipv4 { version_length: 0x44, ..HEADER }, 60, Err(DropReason::Malformed));
        check(Ipv4 { version_length: 0x65, ..HEADER }, 60, Err(DropReason::Malformed));
        check(
            Ipv4 { version_length: 0x46, total_bytes_be: [0, 20], ..HEADER },
            60,
            Err(DropReason::Malformed),
        );
    }

    #[test]
    fn fragments_are_recognised() {
        let check = |fragment_be, piece, offset| {
            let header = Ipv4 { fragment_be, ..HEADER };
            assert_eq!((header.is_fragment(), header.fragment_offset()), (piece, offset));
        };
        check([0x40, 0], false, 0); // don't fragment
        check([0x20, 0], true, 0); // the first
        check([0x20, 185], true, 185);
        check([0, 185], true, 185); // the last
    }

    #[test]
    fn ttl_of_one_is_not_decremented() {
        assert_eq!(Ipv4 { ttl: 1, ..HEADER }.decrement_ttl(), Err(DropReason::TtlExceeded));
        assert_eq!(Ipv4 { ttl: 0, ..HEADER }.decrement_ttl(), Err(DropReason::TtlExceeded));
        assert_eq!(Ipv4 { ttl: 2, ..HEADER }.decrement_ttl().map(|header| header.ttl), Ok(1));
    }

    #[test]
    fn unicast_addresses_are_those_of_hosts() {
        for address in [[10, 0, 0, 1], [1, 1, 1, 1], [223, 255, 255, 255], [169, 254, 169, 254]] {
            assert!(is_unicast(address), "{address:?}");
        }
        for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 22], [240, 0, 0, 1], [255; 4]] {
            assert!(!is_unicast(address), "{address:?}");
        }
    }
}
