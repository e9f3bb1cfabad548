//! Source NAT: which flows can be translated, and which ports are tried.

use datapath_abi::{FlowEntry, FlowKey, V4, flow_flags::REWRITE_DST};

use crate::transport::{ICMP, TCP, UDP};

/// How many ports are tried for a flow. Ports are taken per destination address and port: with half of the range in use for
/// one destination, one flow in 256 finds no port, and its next packet tries the same ports again.
pub const PORT_ATTEMPTS: u32 = 8;

/// Whether packets of the protocol can be translated. Other protocols have no ports (ESP, GRE), or a checksum that cannot be
/// updated in part (SCTP).
#[inline(always)]
pub fn is_translatable(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | ICMP)
}

/// The hash by which ports and backends are chosen for a flow.
///
/// It is the same for the same flow on every run: a flow whose entries were lost most probably gets back its port and goes on.
#[inline(always)]
pub fn flow_hash(key: &FlowKey<V4>) -> u32 {
    let ports =
        u32::from(u16::from_be_bytes(key.src_port_be)) << 16 | u32::from(u16::from_be_bytes(key.dst_port_be));
    let mut hash = mix(u32::from_be_bytes(key.src));
    hash = mix(hash ^ u32::from_be_bytes(key.dst));
    hash = mix(hash ^ ports);
    mix(hash ^ u32::from(key.protocol))
}

/// The port (or ICMP identifier) of the `attempt`-th try for a flow with this hash, in the range `min..=max`; `min`
/// where the range is empty.
#[inline(always)]
pub fn port(flow_hash: u32, min: u16, max: u16, attempt: u32) -> u16 {
    let hash = mix(flow_hash.wrapping_add(0x9e37_79b9_u32.wrapping_mul(attempt)));
    let size = u64::from(max.saturating_sub(min)) + 1;
    // The high word of the product: below `size`, without a division.
    min.wrapping_add((u64::from(hash).wrapping_mul(size) >> 32) as u16)
}

/// The finalizer of MurmurHash3: every bit of the input changes half of the output's.
#[inline(always)]
const fn mix(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// Whether the entry is the reply entry of the flow whose original direction has the key `key`.
#[inline(always)]
pub fn is_reply_to(entry: &FlowEntry, key: &FlowKey<V4>) -> bool {
    entry.flags & REWRITE_DST != 0
        && entry.rewrite_dst == key.src
        && entry.rewrite_dst_port_be == key.src_port_be
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(src: V4, port: u16) -> FlowKey<V4> {
        FlowKey {
            src,
            dst: [198, 51, 100, 9],
            src_port_be: port.to_be_bytes(),
            dst_port_be: [0, 80],
            protocol: TCP,
            pad: [0; 3],
        }
    }

    #[test]
    fn masquerade_ports_lie_in_the_range_and_are_the_same_each_time() {
        for number in 0..10_000_u16 {
            let key = key([10, 0, 1, 5], number);
            for attempt in 0..PORT_ATTEMPTS {
                let chosen = port(flow_hash(&key), 61_000, 61_999, attempt);
                assert!((61_000..=61_999).contains(&chosen), "{chosen}");
                assert_eq!(chosen, port(flow_hash(&key), 61_000, 61_999, attempt));
            }
        }
        assert_eq!(port(flow_hash(&key([10, 0, 1, 5], 1)), 7, 7, 3), 7);
        assert_eq!(port(flow_hash(&key([10, 0, 1, 5], 1)), 7, 6, 3), 7, "an empty range");
        assert!(port(flow_hash(&key([10, 0, 1, 5], 1)), 0, u16::MAX, 3) > 0);
    }

    #[test]
    fn masquerade_ports_are_spread_over_the_range() {
        let mut used = [0_u32; 100];
        for number in 0..5_000_u16 {
            for attempt in 0..2 {
                let chosen = port(
                    flow_hash(&key([10, 0, (number >> 8) as u8, number as u8], 4_000)),
                    100,
                    199,
                    attempt,
                );
                used[usize::from(chosen) - 100] += 1;
            }
        }
        // 100 each in the mean; 5 times the deviation.
        assert!(used.iter().all(|count| (50..150).contains(count)), "{used:?}");
    }

    #[test]
    fn reply_entry_names_its_original_direction() {
        let asked = key([10, 0, 1, 5], 1_000);
        let answer = FlowEntry {
            flags: REWRITE_DST,
            rewrite_dst: asked.src,
            rewrite_dst_port_be: asked.src_port_be,
            ..FlowEntry::default()
        };
        assert!(is_reply_to(&answer, &asked));
        assert!(!is_reply_to(&answer, &key([10, 0, 1, 5], 1_001)));
        assert!(!is_reply_to(&answer, &key([10, 0, 1, 6], 1_000)));
        assert!(!is_reply_to(&FlowEntry { flags: 0, ..answer }, &asked));
    }
}
