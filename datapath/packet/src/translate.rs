//! The transport checksum, where a program updates it itself.

use datapath_abi::{FlowKey, V4};

use crate::{Ipv4, checksum, transport::UDP};

/// The checksum of a TCP or UDP packet whose addresses and ports change from those of `old` to those of `new`. A packet that
/// arrived damaged stays damaged, and UDP without a checksum stays without (RFC 768).
#[inline(always)]
pub fn translated_checksum(checksum_be: [u8; 2], old: &FlowKey<V4>, new: &FlowKey<V4>) -> [u8; 2] {
    if old.protocol == UDP && checksum_be == [0; 2] {
        return checksum_be;
    }
    let words = |key: &FlowKey<V4>| {
        let ([a, b], [c, d]) = (checksum::words(key.src), checksum::words(key.dst));
        [a, b, c, d, key.src_port_be, key.dst_port_be]
    };
    match (old.protocol, checksum::updated(checksum_be, words(old), words(new))) {
        (UDP, [0, 0]) => [0xff; 2],
        (_, updated) => updated,
    }
}

/// Whether a TCP or UDP checksum covers the pseudo header alone (`CHECKSUM_PARTIAL`): the sender's kernel has left the rest to
/// a device, and the packet was never on a wire. One complete checksum in 65,536 looks the same.
#[inline(always)]
pub fn is_checksum_partial(checksum_be: [u8; 2], ip: &Ipv4) -> bool {
    let bytes = u16::from_be_bytes(ip.total_bytes_be).wrapping_sub(size_of::<Ipv4>() as u16);
    let sum = checksum::sum(checksum::words(ip.src))
        + checksum::sum(checksum::words(ip.dst))
        + checksum::sum([[0, ip.protocol], bytes.to_be_bytes()]);
    let [a, b] = checksum::of(sum);
    checksum_be == [!a, !b]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::TCP;

    const OLD: FlowKey<V4> = FlowKey {
        src: [198, 51, 100, 9],
        dst: [203, 0, 113, 7],
        src_port_be: [3, 232],
        dst_port_be: [0, 80],
        protocol: TCP,
        pad: [0; 3],
    };
    const NEW: FlowKey<V4> = FlowKey {
        src: [10, 0, 1, 1],
        dst: [10, 0, 2, 7],
        src_port_be: [240, 1],
        dst_port_be: [31, 144],
        ..OLD
    };

    /// Of the pseudo header, the ports and some payload (RFC 9293, 3.1), computed as a whole.
    fn whole(key: &FlowKey<V4>, payload: u32) -> [u8; 2] {
        checksum::of(
            checksum::sum(checksum::words(key.src))
                + checksum::sum(checksum::words(key.dst))
                + checksum::sum([[0, key.protocol], [0, 20], key.src_port_be, key.dst_port_be])
                + payload,
        )
    }

    #[test]
    fn translated_checksum_is_that_of_the_translated_packet() {
        for payload in [0, 1, 0x1234, 0xfffe, 0xffff, 0xabcde] {
            let (old, new) = (whole(&OLD, payload), whole(&NEW, payload));
            assert_eq!(translated_checksum(old, &OLD, &NEW), new, "{payload}");
            assert_eq!(translated_checksum(new, &NEW, &OLD), old, "{payload}");
            let [a, b] = old;
            let damaged = translated_checksum([a, !b], &OLD, &NEW);
            assert_ne!(damaged, new, "what arrived damaged stays so");
        }
    }

    #[test]
    fn translated_checksum_of_udp_is_never_zero() {
        let (old, new) = (FlowKey { protocol: UDP, ..OLD }, FlowKey { protocol: UDP, ..NEW });
        assert_eq!(translated_checksum([0; 2], &old, &new), [0; 2]);
        let to_zero = (0..=0xffff_u16)
            .map(u16::to_be_bytes)
            .find(|sum| translated_checksum(*sum, &OLD, &NEW) == [0; 2]);
        assert_eq!(translated_checksum(to_zero.expect("one of all"), &old, &new), [0xff; 2]);
    }

    #[test]
    fn checksum_of_the_pseudo_header_alone_is_partial() {
        let ip = Ipv4 { total_bytes_be: [0, 40], ..Ipv4::own(TCP, OLD.src, OLD.dst, 20) };
        let [a, b] = whole(&FlowKey { src_port_be: [0; 2], dst_port_be: [0; 2], ..OLD }, 0);
        assert!(is_checksum_partial([!a, !b], &ip));
        assert!(!is_checksum_partial([a, b], &ip));
        assert!(!is_checksum_partial([!a, !b], &Ipv4 { total_bytes_be: [0, 41], ..ip }));
    }
}
