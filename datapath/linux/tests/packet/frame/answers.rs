//! What a frame is answered with: ICMP errors and TCP resets.

use datapath_abi::V4;

use super::{Frame, IPV4_ID, checksum_offset};
use crate::wire::{
    ETHERNET_BYTES, ICMP, ICMP_BYTES, IPV4_BYTES, IcmpError, TCP, TCP_BYTES, TOS_INTERNETWORK_CONTROL,
    UDP_BYTES, fragment,
    tcp_flag::{ACK, RST},
};

impl Frame {
    /// The ICMP error with which a program rejects this frame, in the name of `from`: back to where the frame came from.
    pub fn icmp_reject(&self, error: IcmpError, from: V4) -> Self {
        let quoted = IPV4_BYTES + if self.protocol == TCP { TCP_BYTES } else { UDP_BYTES };
        let mut payload = vec![error.kind, error.code, 0, 0, 0, 0];
        payload.extend(error.mtu.to_be_bytes());
        payload.extend(&self.bytes()[ETHERNET_BYTES..][..quoted]);
        Self {
            dst_mac: self.src_mac,
            src_mac: self.dst_mac,
            src: from,
            dst: self.src,
            ttl: 64,
            tos: TOS_INTERNETWORK_CONTROL,
            id: 0,
            fragment: fragment::DONT_FRAGMENT,
            protocol: ICMP,
            payload,
            ..self.clone()
        }
    }

    /// An ICMP error about this frame from a router on the path, or from the receiver, to the frame's sender.
    pub fn icmp_error(&self, error: IcmpError, from: V4) -> Self {
        Self { tos: 0, id: IPV4_ID, ..self.icmp_reject(error, from) }
    }

    /// This ICMP error, quoting the transport checksum that `other` quotes: programs translate the quoted addresses
    /// and ports only.
    pub fn quoting_checksum_of(mut self, other: &Self) -> Self {
        let protocol = self.payload[ICMP_BYTES + 9];
        let at = ICMP_BYTES + IPV4_BYTES + checksum_offset(protocol).expect("the protocol has a checksum");
        self.payload[at..at + 2].copy_from_slice(&other.payload[at..at + 2]);
        self
    }

    /// The reset that answers this SYN.
    pub fn reset_of_syn(&self) -> Self {
        self.reset(0, self.word(4) + 1, RST | ACK)
    }

    /// The reset that answers this segment of a connection, by its acknowledgement number.
    pub fn reset_of_ack(&self) -> Self {
        self.reset(self.word(8), 0, RST)
    }

    fn reset(&self, sequence: u32, acknowledged: u32, flags: u8) -> Self {
        let mut payload = [&self.payload[2..4], &self.payload[..2]].concat();
        payload.extend(sequence.to_be_bytes());
        payload.extend(acknowledged.to_be_bytes());
        payload.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        let (dst_mac, src_mac) = (self.src_mac, self.dst_mac);
        let (src, dst, id, ttl, fragment) = (self.dst, self.src, 0, 64, fragment::DONT_FRAGMENT);
        Self { dst_mac, src_mac, src, dst, id, ttl, fragment, payload, ..self.clone() }
    }

    /// 32 bits of the layer 4 header.
    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("4 bytes"))
    }
}
