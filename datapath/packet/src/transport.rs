//! What the transport header tells of a packet's flow.

use crate::wire;

/// The first 8 bytes of the transport header: every protocol whose ports are read has as many.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportStart(pub [u8; 8]);

wire! { TransportStart = 8 }

/// What tells a protocol's flows apart ([`Transport::of`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Ports, and flags that open and end connections.
    Tcp,
    /// Ports only: UDP, UDP-Lite, SCTP, DCCP.
    Ports,
    /// An identifier, in echo requests and replies.
    Icmp,
    /// Nothing: all packets between two addresses are one flow.
    Other,
}

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// SCTP's protocol number.
pub const SCTP: u8 = 132;
const DCCP: u8 = 33;

const UDP_LITE: u8 = 136;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

impl Transport {
    /// The kind of an IP protocol number.
    #[inline(always)]
    pub fn of(protocol: u8) -> Self {
        match protocol {
            TCP => Self::Tcp,
            UDP | UDP_LITE | SCTP | DCCP => Self::Ports,
            ICMP => Self::Icmp,
            _ => Self::Other,
        }
    }
}

/// A port or an ICMP identifier as it is on the wire, network byte order.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WirePort(pub [u8; 2]);

wire! { WirePort = 2 }

/// Where a transport header has what is translated: offsets from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPlace {
    /// Offset of the port.
    pub port: usize,
    /// Offset of the checksum.
    pub checksum: usize,
    /// Whether the checksum covers the addresses, too (TCP, UDP).
    pub covers_addresses: bool,
}

impl PortPlace {
    /// For the source port or the destination port; an echo has one identifier in the place of both. `None`: the protocol is
    /// not translated.
    #[inline(always)]
    pub const fn of(protocol: u8, is_source: bool) -> Option<Self> {
        let port = if is_source { 0 } else { 2 };
        match protocol {
            TCP => Some(Self { port, checksum: 16, covers_addresses: true }),
            UDP => Some(Self { port, checksum: 6, covers_addresses: true }),
            ICMP => Some(Self { port: 4, checksum: 2, covers_addresses: false }),
            _ => None,
        }
    }
}

/// Source and destination port for the flow key, network byte order. ICMP echo: the identifier is the port of the end that
/// sends requests, so that the reply's key is the reverse of the request's. Other ICMP messages: 0.
#[inline(always)]
pub fn ports(transport: Transport, start: TransportStart) -> ([u8; 2], [u8; 2]) {
    let TransportStart([a, b, c, d, e, f, ..]) = start;
    match transport {
        Transport::Tcp | Transport::Ports => ([a, b], [c, d]),
        Transport::Icmp if a == ECHO_REQUEST => ([e, f], [0, 0]),
        Transport::Icmp if a == ECHO_REPLY => ([0, 0], [e, f]),
        Transport::Icmp | Transport::Other => ([0, 0], [0, 0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_each_kind_of_transport() {
        let start = TransportStart([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(ports(Transport::of(TCP), start), ([1, 2], [3, 4]));
        assert_eq!(ports(Transport::of(UDP), start), ([1, 2], [3, 4]));
        assert_eq!(ports(Transport::of(SCTP), start), ([1, 2], [3, 4]));
        assert_eq!(ports(Transport::of(47), start), ([0, 0], [0, 0]));
    }

    #[test]
    fn ports_of_an_echo_reply_are_the_reverse_of_the_request() {
        let request = ports(Transport::Icmp, TransportStart([ECHO_REQUEST, 0, 9, 9, 0xab, 0xcd, 0, 1]));
        let reply = ports(Transport::Icmp, TransportStart([ECHO_REPLY, 0, 9, 9, 0xab, 0xcd, 0, 1]));
        assert_eq!(request, ([0xab, 0xcd], [0, 0]));
        assert_eq!(reply, (request.1, request.0));
        let unreachable = ports(Transport::Icmp, TransportStart([3, 1, 9, 9, 0xab, 0xcd, 0, 1]));
        assert_eq!(unreachable, ([0, 0], [0, 0]));
    }
}
