//! The outer headers of a tunnel packet (VXLAN, RFC 7348), where a program writes and reads them itself.

use datapath_abi::V4;

use crate::{ETHERNET_BYTES, Ethernet, Ipv4, transport::UDP, wire};

/// What stands before the inner Ethernet header: Ethernet, IP, UDP, VXLAN.
pub const TUNNEL_BYTES: usize = ETHERNET_BYTES + size_of::<Ipv4>() + size_of::<TunnelHeader>();

const ECN_MASK: u8 = 0b11;
const CONGESTION_EXPERIENCED: u8 = 0b11;
const ECN_CAPABLE: u8 = 0b10;
/// Flag of the VXLAN header: it has a VNI. Our nodes set no other flag.
const HAS_VNI: u8 = 0x08;
/// First of the source ports that RFC 7348 recommends: the dynamic ports, of which there is a power of two.
const FIRST_SOURCE_PORT: u16 = 49_152;
const SOURCE_PORT_BITS: u32 = 14;

/// UDP and VXLAN header of a tunnel packet.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelHeader {
    /// Source port, by the inner flow, so that the underlay spreads flows over its paths.
    pub src_port_be: [u8; 2],
    /// The tunnel port.
    pub dst_port_be: [u8; 2],
    /// Bytes of this header and what follows.
    pub bytes_be: [u8; 2],
    /// Checksum; 0: none.
    pub checksum_be: [u8; 2],
    /// Flags of VXLAN, and reserved bytes.
    pub flags: [u8; 4],
    /// The sender's identity.
    pub vni_be: [u8; 3],
    /// Zero.
    pub reserved: u8,
}

wire! { TunnelHeader = 16 }

impl TunnelHeader {
    /// For `frame_bytes` from the inner Ethernet header on, of a flow with this hash.
    #[inline(always)]
    pub fn new(flow_hash: u32, port: u16, vni: u32, frame_bytes: u16) -> Self {
        let [_, vni_be @ ..] = vni.to_be_bytes();
        let source = FIRST_SOURCE_PORT + (flow_hash >> (32 - SOURCE_PORT_BITS)) as u16;
        Self {
            src_port_be: source.to_be_bytes(),
            dst_port_be: port.to_be_bytes(),
            bytes_be: (frame_bytes + size_of::<Self>() as u16).to_be_bytes(),
            checksum_be: [0; 2],
            flags: [HAS_VNI, 0, 0, 0],
            vni_be,
            reserved: 0,
        }
    }

    /// The identity that the header carries.
    #[inline(always)]
    pub fn vni(&self) -> u32 {
        let [a, b, c] = self.vni_be;
        u32::from_be_bytes([0, a, b, c])
    }

    /// Whether the header is as our nodes write it: no checksum, no extension, and as long as the outer IP packet, which is whole
    /// and without options.
    #[inline(always)]
    pub fn is_plain(&self, outer: &Ipv4) -> bool {
        let inside = u16::from_be_bytes(outer.total_bytes_be).wrapping_sub(size_of::<Ipv4>() as u16);
        self.checksum_be == [0; 2]
            && self.flags == [HAS_VNI, 0, 0, 0]
            && self.reserved == 0
            && u16::from_be_bytes(self.bytes_be) == inside
    }
}

/// The IP header around a tunnel packet of `frame_bytes` from the inner Ethernet header on, whose inner IP header has the
/// type of service `inner_tos`.
#[inline(always)]
pub fn tunnel_ipv4(src: V4, dst: V4, frame_bytes: u16, inner_tos: u8) -> Ipv4 {
    Ipv4::own(UDP, src, dst, frame_bytes + size_of::<TunnelHeader>() as u16).with_tos(outer_ecn(inner_tos))
}

/// The ECN field of the outer header (RFC 6040, as Linux does): a copy of the inner one, but congestion that was experienced
/// already is marked in the inner header only.
#[inline(always)]
fn outer_ecn(inner_tos: u8) -> u8 {
    match inner_tos & ECN_MASK {
        CONGESTION_EXPERIENCED => ECN_CAPABLE,
        other => other,
    }
}

/// Whether decapsulation leaves the inner ECN field unchanged.
#[inline(always)]
pub fn is_ecn_the_same(outer: &Ipv4, inner: &Ipv4) -> bool {
    (outer.tos ^ inner.tos) & ECN_MASK == 0
}

/// Whether the headers behind the outer Ethernet header are those of a tunnel packet to this node.
#[inline(always)]
pub fn is_tunnel_packet(outer: &Ipv4, header: &TunnelHeader, address: V4, port: u16) -> bool {
    outer.protocol == UDP && outer.dst == address && header.dst_port_be == port.to_be_bytes()
}

const _: () = assert!(TUNNEL_BYTES == 50 && size_of::<Ethernet>() == ETHERNET_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    const SRC: V4 = [192, 0, 2, 1];
    const DST: V4 = [192, 0, 2, 5];

    #[test]
    fn tunnel_header_reads_back_as_written() {
        let outer = tunnel_ipv4(SRC, DST, 114, 0);
        let header = TunnelHeader::new(0xffff_ffff, 8472, 0x00ab_cdef, 114);
        assert!(header.is_plain(&outer));
        assert_eq!(
            (header.vni(), header.src_port_be, header.bytes_be),
            (0x00ab_cdef, [0xff, 0xff], [0, 130])
        );
        assert_eq!(TunnelHeader::new(0, 8472, 1, 114).src_port_be, [0xc0, 0]);
        assert!(is_tunnel_packet(&outer, &header, DST, 8472));
        assert!(!is_tunnel_packet(&outer, &header, SRC, 8472));
        assert!(!is_tunnel_packet(&outer, &header, DST, 4789));
    }

    #[test]
    fn tunnel_header_of_others_is_not_plain() {
        let outer = tunnel_ipv4(SRC, DST, 114, 0);
        let plain = TunnelHeader::new(7, 8472, 300, 114);
        for other in [
            TunnelHeader { checksum_be: [0, 1], ..plain },
            TunnelHeader { flags: [0x88, 0, 0, 0], ..plain },
            TunnelHeader { flags: [0x08, 0, 0, 1], ..plain },
            TunnelHeader { reserved: 1, ..plain },
            TunnelHeader { bytes_be: [0, 131], ..plain },
        ] {
            assert!(!other.is_plain(&outer), "{other:?}");
        }
    }

    #[test]
    fn outer_header_carries_ecn_and_a_right_checksum() {
        for (inner, expected) in [(0, 0), (1, 1), (2, 2), (3, 2), (0xb8, 0), (0xbb, 2)] {
            let header = tunnel_ipv4(SRC, DST, 114, inner);
            assert_eq!(header.tos, expected);
            let sum = checksum::sum([
                [header.version_length, header.tos],
                header.total_bytes_be,
                header.id_be,
                header.fragment_be,
                [header.ttl, header.protocol],
                header.checksum_be,
            ]) + checksum::sum(checksum::words(SRC))
                + checksum::sum(checksum::words(DST));
            assert_eq!(checksum::of(sum), [0, 0]);
            assert_eq!(is_ecn_the_same(&header, &Ipv4 { tos: inner, ..header }), inner & 3 != 3);
        }
    }
}
