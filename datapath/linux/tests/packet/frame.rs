//! Packets, written out: headers and checksums computed from scratch.

use datapath_abi::{FlowKey, MacBytes, V4};

use crate::world::Peer;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const SCTP: u8 = 132;

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
    /// UDP may do without.
    udp_checksum: bool,
}

impl Frame {
    pub fn ipv4(src: &Peer, dst: &Peer, protocol: u8, payload: &[u8]) -> Self {
        Self {
            dst_mac: src.src_mac,
            src_mac: src.dst_mac,
            ethertype: 0x0800,
            src: src.address,
            dst: dst.address,
            tos: 0,
            id: 0x1234,
            ttl: 64,
            option_words: 0,
            fragment: 0x4000,
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
        Self::tcp(src, dst, 1000, 80, SYN)
    }

    pub fn syn_ack(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, 80, 1000, SYN | ACK)
    }

    pub fn ack(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, 1000, 80, ACK)
    }

    pub fn fin(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, 1000, 80, FIN | ACK)
    }

    pub fn fin_back(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, 80, 1000, FIN | ACK)
    }

    pub fn rst_back(src: &Peer, dst: &Peer) -> Self {
        Self::tcp(src, dst, 80, 1000, RST)
    }

    pub fn icmp(src: &Peer, dst: &Peer, kind: u8, id: u16) -> Self {
        let mut payload = vec![kind, 0, 0, 0];
        payload.extend(id.to_be_bytes());
        payload.extend([0, 1]);
        Self::ipv4(src, dst, ICMP, &payload)
    }

    pub fn echo_request(src: &Peer, dst: &Peer, id: u16) -> Self {
        Self::icmp(src, dst, 8, id)
    }

    pub fn echo_reply(src: &Peer, dst: &Peer, id: u16) -> Self {
        Self::icmp(src, dst, 0, id)
    }

    /// The ICMP error that the gateway sends about this frame, towards where it came from.
    pub fn refused(&self, kind: u8, code: u8, mtu: u16, gateway: V4) -> Self {
        let quoted = 20 + if self.protocol == TCP { 20 } else { 8 };
        let mut payload = vec![kind, code, 0, 0, 0, 0];
        payload.extend(mtu.to_be_bytes());
        payload.extend(&self.bytes()[14..14 + quoted]);
        Self {
            dst_mac: self.src_mac,
            src_mac: self.dst_mac,
            src: gateway,
            dst: self.src,
            ttl: 64,
            tos: 0xc0,
            id: 0,
            fragment: 0x4000,
            protocol: ICMP,
            payload,
            ..self.clone()
        }
    }

    /// The reset that answers this segment.
    pub fn reset(&self, sequence: u32, acknowledged: u32, ack: bool) -> Self {
        let mut payload = [&self.payload[2..4], &self.payload[..2]].concat();
        payload.extend(sequence.to_be_bytes());
        payload.extend(acknowledged.to_be_bytes());
        payload.extend([0x50, RST | if ack { ACK } else { 0 }, 0, 0, 0, 0, 0, 0]);
        let (dst_mac, src_mac) = (self.src_mac, self.dst_mac);
        let (src, dst, id, ttl, fragment) = (self.dst, self.src, 0, 64, 0x4000);
        Self { dst_mac, src_mac, src, dst, id, ttl, fragment, payload, ..self.clone() }
    }

    /// An ICMP error about a packet, from somebody on its way (or its receiver) to its sender.
    pub fn error_about(&self, from: V4, kind: u8, code: u8, mtu: u16) -> Self {
        Self { tos: 0, id: 0x1234, ..self.refused(kind, code, mtu, from) }
    }

    pub fn macs(mut self, dst_mac: MacBytes, src_mac: MacBytes) -> Self {
        (self.dst_mac, self.src_mac) = (dst_mac, src_mac);
        self
    }

    /// Addressed as frames to the peer are.
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

    /// Another source port, or the identifier of an echo.
    pub fn source_port(mut self, port: u16) -> Self {
        let at = if self.protocol == ICMP { 4 } else { 0 };
        self.payload[at..at + 2].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// Another destination port, or the identifier of an echo.
    pub fn destination_port(mut self, port: u16) -> Self {
        let at = if self.protocol == ICMP { 4 } else { 2 };
        self.payload[at..at + 2].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// With a checksum also where it is UDP.
    pub fn checksummed(mut self) -> Self {
        self.udp_checksum = true;
        self
    }

    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.ethertype = ethertype;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// `words` of options in the IP header.
    pub fn options(mut self, words: u8) -> Self {
        self.option_words = words;
        self
    }

    /// A piece of a datagram, from `offset` (8 bytes) on.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = offset | if more { 0x2000 } else { 0 };
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
        self.ethertype == 0x0800
    }

    /// The key of its flow, by the rules of `FlowKey`, written here a second time.
    pub fn key(&self) -> FlowKey<V4> {
        let word = |at: usize| match self.payload.get(at..at + 2) {
            Some(&[a, b]) if self.fragment & 0x1fff == 0 => [a, b],
            _ => [0, 0],
        };
        let (src_port_be, dst_port_be) = match (self.protocol, self.payload.first()) {
            (TCP, _) if self.payload.len() < 20 => ([0, 0], [0, 0]),
            (TCP | UDP | SCTP, _) => (word(0), word(2)),
            (ICMP, Some(8)) => (word(4), [0, 0]),
            (ICMP, Some(0)) => ([0, 0], word(4)),
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

    /// The payload with the checksum of its protocol, where the header is there and has room for it.
    fn summed_payload(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        let (at, with_addresses) = match self.protocol {
            TCP => (16, true),
            UDP if self.udp_checksum => (6, true),
            ICMP => (2, false),
            _ => return payload,
        };
        if self.fragment & 0x1fff != 0 || payload.len() < at + 2 {
            return payload;
        }
        payload[at..at + 2].fill(0);
        let mut covered = vec![];
        if with_addresses {
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

/// Of bytes in which the checksum itself is 0 (RFC 1071).
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!(((folded & 0xffff) + (folded >> 16)) as u16)).to_be_bytes()
}

/// An ARP packet in its frame.
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
