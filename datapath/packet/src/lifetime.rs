//! How long a silent flow is remembered.
//!
//! Forgetting a flow loses no packet: the next one is decided anew. The times only bound how long the table
//! holds what is over, and what counts as one conversation in events.

use core::time::Duration;

use datapath_abi::FlowEntry;

use crate::{
    tcp::{TcpState, tcp_state},
    transport::Transport,
};

/// Established TCP: longer than the keepalive of most systems (2 hours).
const TCP_ESTABLISHED: Duration = Duration::from_secs(6 * 3600);
/// Opening TCP: as long as a client goes on sending SYN (Linux: 6 retries in 127 s, most give up before).
const TCP_OPENING: Duration = Duration::from_secs(60);
/// Half-closed TCP connections may still move data.
const TCP_CLOSING: Duration = Duration::from_secs(300);
/// Closed TCP: time for late packets.
const TCP_CLOSED: Duration = Duration::from_secs(10);
/// Datagrams with replies: RFC 4787 asks two minutes of NATs.
const DATAGRAM_ANSWERED: Duration = Duration::from_secs(120);
/// Datagrams without replies.
const DATAGRAM_UNANSWERED: Duration = Duration::from_secs(30);

/// How long a flow may be silent in both directions. The flags are those seen in each direction, in any order;
/// `answered`: packets were seen in both.
pub fn lifetime(protocol: u8, one_tcp_flags: u8, other_tcp_flags: u8, answered: bool) -> Duration {
    match (Transport::of(protocol), answered) {
        (Transport::Tcp, _) => match tcp_state(one_tcp_flags, other_tcp_flags) {
            TcpState::Opening => TCP_OPENING,
            TcpState::Established => TCP_ESTABLISHED,
            TcpState::Closing => TCP_CLOSING,
            TcpState::Closed => TCP_CLOSED,
        },
        (_, true) => DATAGRAM_ANSWERED,
        (_, false) => DATAGRAM_UNANSWERED,
    }
}

/// Whether the flow of `entry` has expired at `now_ns` (`CLOCK_MONOTONIC_COARSE`). `reverse` is the other entry,
/// `None` where that was evicted. The answer is the same for both entries, so that they go together.
pub fn has_expired(protocol: u8, entry: &FlowEntry, reverse: Option<&FlowEntry>, now_ns: u64) -> bool {
    let other_flags = reverse.map_or(0, |half| half.tcp_flags);
    let answered = entry.packets > 0 && reverse.is_some_and(|half| half.packets > 0);
    let last_seen_ns = reverse.map_or(entry.last_seen_ns, |half| half.last_seen_ns.max(entry.last_seen_ns));
    let silent = Duration::from_nanos(now_ns.saturating_sub(last_seen_ns));
    silent > lifetime(protocol, entry.tcp_flags, other_flags, answered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{tcp::flag::*, transport::*};

    fn half(packets: u64, last_seen: Duration, tcp_flags: u8) -> FlowEntry {
        FlowEntry { packets, last_seen_ns: last_seen.as_nanos() as u64, tcp_flags, ..FlowEntry::default() }
    }

    /// A flow lives exactly `expected` after its last packet, seen from either half.
    fn check(protocol: u8, one: FlowEntry, other: FlowEntry, expected: Duration) {
        let last_seen_ns = one.last_seen_ns.max(other.last_seen_ns);
        let end_ns = last_seen_ns + expected.as_nanos() as u64;
        for (entry, reverse) in [(one, other), (other, one)] {
            assert!(!has_expired(protocol, &entry, Some(&reverse), end_ns));
            assert!(has_expired(protocol, &entry, Some(&reverse), end_ns + 1));
        }
    }

    #[test]
    fn lifetime_of_each_kind_of_flow() {
        let at = Duration::from_secs;
        check(UDP, half(1, at(5), 0), half(0, at(0), 0), DATAGRAM_UNANSWERED);
        check(UDP, half(1, at(5), 0), half(1, at(9), 0), DATAGRAM_ANSWERED);
        check(ICMP, half(1, at(5), 0), half(1, at(9), 0), DATAGRAM_ANSWERED);
        check(TCP, half(1, at(5), SYN), half(0, at(5), 0), TCP_OPENING);
        check(TCP, half(1, at(5), SYN | ACK), half(1, at(5), SYN | ACK), TCP_ESTABLISHED);
        check(TCP, half(1, at(5), SYN | ACK | FIN), half(1, at(5), SYN | ACK), TCP_CLOSING);
        check(TCP, half(1, at(5), RST), half(1, at(5), SYN | ACK), TCP_CLOSED);
    }

    #[test]
    fn lifetime_of_a_lone_entry_and_with_a_clock_behind() {
        let lone = half(1, Duration::from_secs(100), 0);
        assert!(!has_expired(UDP, &lone, None, 0));
        assert!(has_expired(UDP, &lone, None, Duration::from_secs(131).as_nanos() as u64));
    }
}
