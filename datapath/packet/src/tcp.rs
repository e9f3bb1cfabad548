//! TCP: headers, and the state of a connection as far as the flags of both directions tell.

use datapath_abi::V4;

use crate::{TransportStart, wire};

/// The header without its options (RFC 9293).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Ports and sequence number.
    pub start: TransportStart,
    /// Acknowledgement number.
    pub acknowledged_be: [u8; 4],
    /// Header length in words (4 bits), and reserved ones.
    pub length: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Window, checksum, urgent pointer.
    pub rest: [u8; 6],
}

wire! { Tcp = 20 }

/// What a transport's checksum covers of the IP header (RFC 9293, 3.1).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PseudoHeader {
    /// Source.
    pub src: V4,
    /// Destination.
    pub dst: V4,
    /// Zero.
    pub zero: u8,
    /// Protocol.
    pub protocol: u8,
    /// Of the transport's header and payload.
    pub bytes_be: [u8; 2],
}

wire! { PseudoHeader = 12 }

impl Tcp {
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;

    /// The reset in reply to a segment of a connection that nobody has (RFC 9293, 3.5.2), without its checksum. The caller
    /// answers no reset.
    #[inline(always)]
    pub fn reset(&self) -> Self {
        let TransportStart([a, b, c, d, sequence @ ..]) = self.start;
        let (sequence_be, acknowledged_be, flags) = if self.flags & flag::ACK != 0 {
            (self.acknowledged_be, [0; 4], flag::RST)
        } else {
            // What opens a connection counts as one byte.
            ([0; 4], u32::from_be_bytes(sequence).wrapping_add(1).to_be_bytes(), flag::RST | flag::ACK)
        };
        let [e, f, g, h] = sequence_be;
        Self {
            start: TransportStart([c, d, a, b, e, f, g, h]),
            acknowledged_be,
            length: 5 << 4,
            flags,
            rest: [0; 6],
        }
    }
}

/// Bits of [`Tcp::flags`].
pub mod flag {
    /// The sender has no more data.
    pub const FIN: u8 = 1 << 0;
    /// Opens a connection.
    pub const SYN: u8 = 1 << 1;
    /// Resets a connection.
    pub const RST: u8 = 1 << 2;
    /// Acknowledges.
    pub const ACK: u8 = 1 << 4;
}

/// See [`tcp_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// One end has sent packets.
    Opening,
    /// Both ends have sent packets, or the connection is older than its entry.
    Established,
    /// One end has sent FIN.
    Closing,
    /// The connection was reset, or both ends have sent FIN.
    Closed,
}

/// The state from the flags seen in either direction, or-ed. The order of the directions does not matter.
#[inline(always)]
pub fn tcp_state(one: u8, other: u8) -> TcpState {
    let both = one & other;
    let any = one | other;
    if any & flag::RST != 0 || both & flag::FIN != 0 {
        TcpState::Closed
    } else if any & flag::FIN != 0 {
        TcpState::Closing
    } else if both & flag::ACK != 0 || any & flag::SYN == 0 {
        TcpState::Established
    } else {
        TcpState::Opening
    }
}

/// Whether a packet with these flags opens a connection.
#[inline(always)]
pub fn opens(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}

/// Whether a packet with these flags may end a connection.
#[inline(always)]
pub fn may_end(flags: u8) -> bool {
    flags & (flag::FIN | flag::RST) != 0
}

#[cfg(test)]
mod tests {
    use super::{flag::*, *};

    #[test]
    fn tcp_state_by_flags_of_both_directions() {
        let check = |one, other, expected| {
            assert_eq!(tcp_state(one, other), expected, "{one:#x} {other:#x}");
            assert_eq!(tcp_state(other, one), expected, "{other:#x} {one:#x}");
        };
        check(SYN, 0, TcpState::Opening);
        check(SYN, SYN | ACK, TcpState::Opening);
        check(SYN | ACK, SYN | ACK, TcpState::Established);
        check(ACK, 0, TcpState::Established); // begun before its entry
        check(SYN | ACK | FIN, SYN | ACK, TcpState::Closing);
        check(SYN | ACK | FIN, SYN | ACK | FIN, TcpState::Closed);
        check(SYN, RST | ACK, TcpState::Closed);
    }

    #[test]
    fn tcp_reset_is_acceptable_to_its_receiver() {
        let tcp = |flags| Tcp {
            start: TransportStart([4, 0, 0, 80, 0, 0, 1, 255]),
            acknowledged_be: [9, 9, 9, 9],
            length: 0xa0,
            flags,
            rest: [1; 6],
        };
        let check = |flags, sequence: [u8; 4], acknowledged_be, expected_flags| {
            let [a, b, c, d] = sequence;
            let expected = Tcp {
                start: TransportStart([0, 80, 4, 0, a, b, c, d]),
                acknowledged_be,
                length: 0x50,
                flags: expected_flags,
                rest: [0; 6],
            };
            assert_eq!(tcp(flags).reset(), expected);
        };
        check(SYN, [0; 4], [0, 0, 2, 0], RST | ACK);
        check(ACK, [9, 9, 9, 9], [0; 4], RST);
        check(SYN | ACK, [9, 9, 9, 9], [0; 4], RST);
    }

    #[test]
    fn tcp_connection_is_opened_by_a_bare_syn() {
        assert!(opens(SYN));
        for flags in [SYN | ACK, ACK, SYN | RST, RST, FIN, 0] {
            assert!(!opens(flags), "{flags:#x}");
        }
    }
}
