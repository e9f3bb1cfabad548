//! Where a TCP connection is in its life, as far as the flags of both directions tell.

use crate::{Start, wire};

/// The header without its options (RFC 9293).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Ports and sequence number.
    pub start: Start,
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

/// Bits of [`Tcp::flags`].
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1 << 0;
    /// Opens.
    pub const SYN: u8 = 1 << 1;
    /// Gives up.
    pub const RST: u8 = 1 << 2;
    /// Acknowledges.
    pub const ACK: u8 = 1 << 4;
}

/// See [`tcp_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// One side has spoken.
    Opening,
    /// Both have, or the connection is older than its entry.
    Established,
    /// One side has sent FIN.
    Closing,
    /// Reset, or both sides have sent FIN.
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

/// Whether a packet with these flags begins a connection.
#[inline(always)]
pub fn opens(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}

/// Whether a packet with these flags may end one.
#[inline(always)]
pub fn may_end(flags: u8) -> bool {
    flags & (flag::FIN | flag::RST) != 0
}

#[cfg(test)]
mod tests {
    use super::{flag::*, *};

    #[test]
    fn states() {
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
    fn only_a_bare_syn_opens() {
        assert!(opens(SYN));
        for flags in [SYN | ACK, ACK, SYN | RST, RST, FIN, 0] {
            assert!(!opens(flags), "{flags:#x}");
        }
    }
}
