//! Packets, written out: headers and checksums computed from scratch.

mod answers;

use datapath_abi::{FlowKey, MacBytes, V4};

use crate::{
    kernel::Packet,
    wire::{
        ICMP, SCTP, TCP, TCP_BYTES, UDP, ethertype, fragment, icmp_type,
        tcp_flag::{ACK, FIN, RST, SYN},
    },
    world::Peer,
};

/// Ports of the TCP segments of [`Frame::syn`] and its like: the client's and the server's.
pub const CLIENT_PORT: u16 = 1000;
pub const SERVER_PORT: u16 = 80;

/// Ethernet address of whoever sends to the node's underlay device: the next router.
pub const UNDERLAY_SENDER: MacBytes = [2, 9, 9, 9, 9, 9];
const IPV4_ID: u16 = 0x1234;

/// An Ethernet frame with an IPv4 packet, on its way from a peer's device to its gateway.
#[derive(Clone)]
pub struct Frame {
    dst_mac: MacBytes,
    src_mac: MacBytes,
    ethertype: u16,
    src: V4,
    dst: V4,
    tos: u8,
    id: u16,
    ttl: u8,
    option_words: u8,
    fragment: u16,
    protocol: u8,
    payload: Vec<u8>,
    /// UDP over IPv4 may omit the checksum.
    udp_checksum: bool,
}

impl Frame {
    pub fn ipv4(src: &Peer, dst: &Peer, protocol: u8, payload: &[u8]) -> Self {
        Self {
            dst_mac: src.src_mac,
            src_mac: src.dst_mac,
            ethertype: ethertype::IPV4,
            src: src.address,
            dst: dst.address,
            tos: 0,
            id: IPV4_ID,
            ttl: 64,
            option_words: 0,
            fragment: fragment::DONT_FRAGMENT,
            protocol,
            payload: payload.to_vec(),
            udp_checksum: false,
        }
    }

    pub fn udp(src: &Peer, dst: &Peer, src_port: u16, dst_port: u16) -> Self {
        let mut payload = vec![];
        for word in [src_port, dst_port, 16, 0] {
            payload.extend(word.to_be_bytes());
        }
        payload.extend(*b"payload!");
        Self::ipv4(src, dst, UDP, &payload)
    }

    pub fn tcp(src: &Peer, dst: &Peer, src_port: u16, dst_port: u16, flags: u8) -> Self {
        let mut payload = vec![];
        payload.extend(src_port.to_be_bytes());
        payload.extend(dst_port.to_be_bytes());
        payload.extend([0; 8]);
        payload.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        Self::ipv4(src, dst, TCP, &payload)
    }

    pub fn syn(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, CLIENT_PORT, SERVER_PORT, SYN)
    }

    pub fn syn_ack(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, SERVER_PORT, CLIENT_PORT, SYN | ACK)
    }

    pub fn ack(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, CLIENT_PORT, SERVER_PORT, ACK)
    }

    pub fn fin(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, CLIENT_PORT, SERVER_PORT, FIN | ACK)
    }

    pub fn fin_from_server(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, SERVER_PORT, CLIENT_PORT, FIN | ACK)
    }

    pub fn rst_from_server(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, SERVER_PORT, CLIENT_PORT, RST)
    }

    pub fn icmp(src: &Peer, dst: &Peer, kind: u8, id: u16) -> Self {
        let mut payload = vec![kind, 0, 0, 0];
        payload.extend(id.to_be_bytes());
        payload.extend([0, 1]);
        Self::ipv4(src, dst, ICMP, &payload)
    }

    pub fn echo_request(src: &Peer, dst: &Peer, id: u16) -> Self {
        Self::icmp(src, dst, icmp_type::ECHO_REQUEST, id)
    }

    pub fn echo_reply(src: &Peer, dst: &Peer, id: u16) -> Self {
        Self::icmp(src, dst, icmp_type::ECHO_REPLY, id)
    }

    pub fn macs(mut self, dst_mac: MacBytes, src_mac: MacBytes) -> Self {
        (self.dst_mac, self.src_mac) = (dst_mac, src_mac);
        self
    }

    /// As a classifier gets it at the underlay device. (Test runs use the loopback device, whose Ethernet address is 0.)
    pub fn on_underlay(self) -> Self {
        self.macs([0; 6], UNDERLAY_SENDER)
    }

    /// With the Ethernet addresses of frames to the peer.
    pub fn towards(self, peer: &Peer) -> Self {
        self.macs(peer.dst_mac, peer.src_mac)
    }

    pub fn source(mut self, src: V4) -> Self {
        self.src = src;
        self
    }

    pub fn destination(mut self, dst: V4) -> Self {
        self.dst = dst;
        self
    }

    /// With this source port, or identifier of an echo.
    pub fn source_port(mut self, port: u16) -> Self {
        let at = if self.protocol == ICMP { 4 } else { 0 };
        self.payload[at..at + 2].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// With this destination port, or identifier of an echo.
    pub fn destination_port(mut self, port: u16) -> Self {
        let at = if self.protocol == ICMP { 4 } else { 2 };
        self.payload[at..at + 2].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// With a checksum, also if it is UDP.
    pub fn checksummed(mut self) -> Self {
        self.udp_checksum = true;
        self
    }

    pub fn has_checksum(&self) -> bool {
        self.protocol != UDP || self.udp_checksum
    }

    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.ethertype = ethertype;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With this many 32-bit words of options in the IP header.
    pub fn options(mut self, words: u8) -> Self {
        self.option_words = words;
        self
    }

    /// As a fragment of a datagram, at `offset` (in units of 8 bytes).
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = offset | if more { fragment::MORE } else { 0 };
        self
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    pub fn tcp_flags(&self) -> u8 {
        if self.protocol == TCP { self.payload.get(13).copied().unwrap_or(0) } else { 0 }
    }

    pub fn is_ipv4(&self) -> bool {
        self.ethertype == ethertype::IPV4
    }

    fn is_later_fragment(&self) -> bool {
        self.fragment & fragment::OFFSET != 0
    }

    /// The key of its flow: the rules of `FlowKey`, implemented a second time.
    pub fn key(&self) -> FlowKey<V4> {
        let word = |at: usize| match self.payload.get(at..at + 2) {
            Some(&[a, b]) if !self.is_later_fragment() => [a, b],
            _ => [0, 0],
        };
        let (src_port_be, dst_port_be) = match (self.protocol, self.payload.first()) {
            (TCP, _) if self.payload.len() < TCP_BYTES => ([0, 0], [0, 0]),
            (TCP | UDP | SCTP, _) => (word(0), word(2)),
            (ICMP, Some(&icmp_type::ECHO_REQUEST)) => (word(4), [0, 0]),
            (ICMP, Some(&icmp_type::ECHO_REPLY)) => ([0, 0], word(4)),
            _ => ([0, 0], [0, 0]),
        };
        FlowKey {
            src: self.src,
            dst: self.dst,
            src_port_be,
            dst_port_be,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let words = 5 + self.option_words;
        let mut ip = vec![0x40 | words, self.tos];
        ip.extend((u16::from(words) * 4 + self.payload.len() as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.protocol, 0, 0]);
        ip.extend(self.src);
        ip.extend(self.dst);
        ip.extend(vec![1; usize::from(self.option_words) * 4]); // "no operation"
        let checksum = checksum(&ip);
        ip[10..12].copy_from_slice(&checksum);

        let mut bytes = vec![];
        bytes.extend(self.dst_mac);
        bytes.extend(self.src_mac);
        bytes.extend(self.ethertype.to_be_bytes());
        bytes.extend(ip);
        bytes.extend(self.summed_payload());
        bytes
    }

    /// The payload with its checksum, if the payload has the header that the checksum is in.
    fn summed_payload(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        let Some(at) = checksum_offset(self.protocol).filter(|_| self.has_checksum()) else { return payload };
        if self.is_later_fragment() || payload.len() < at + 2 {
            return payload;
        }
        payload[at..at + 2].fill(0);
        let mut covered = vec![];
        if self.protocol != ICMP {
            covered.extend(self.src);
            covered.extend(self.dst);
            covered.extend([0, self.protocol]);
            covered.extend((payload.len() as u16).to_be_bytes());
        }
        covered.extend(&payload);
        let sum = checksum(&covered);
        payload[at..at + 2].copy_from_slice(&sum);
        payload
    }
}

impl Packet for Frame {
    fn to_bytes(&self) -> Vec<u8> {
        self.bytes()
    }
}

/// Where a layer 4 header has its checksum.
pub const fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP => Some(2),
        _ => None,
    }
}

/// The Internet checksum of bytes in which the checksum field is 0 (RFC 1071).
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!(((folded & 0xffff) + (folded >> 16)) as u16)).to_be_bytes()
}

/// An Ethernet frame with an ARP packet for IPv4.
pub fn arp(
    operation: u8,
    (dst_mac, src_mac): (MacBytes, MacBytes),
    (sender_mac, sender): (MacBytes, V4),
    (target_mac, target): (MacBytes, V4),
) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.extend(dst_mac);
    bytes.extend(src_mac);
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
    bytes.extend(sender_mac);
    bytes.extend(sender);
    bytes.extend(target_mac);
    bytes.extend(target);
    bytes
}
