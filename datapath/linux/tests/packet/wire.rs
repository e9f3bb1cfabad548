//! Numbers of packet headers, by name.

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ESP: u8 = 50;
pub const SCTP: u8 = 132;

pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
}

pub mod tcp_flag {
    pub const FIN: u8 = 1 << 0;
    pub const SYN: u8 = 1 << 1;
    pub const RST: u8 = 1 << 2;
    pub const PSH: u8 = 1 << 3;
    pub const ACK: u8 = 1 << 4;
}

/// RFC 792.
pub mod icmp_type {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const TIMESTAMP: u8 = 13;
}

pub mod arp_operation {
    pub const REQUEST: u8 = 1;
    pub const REPLY: u8 = 2;
}

/// Flags and offset field of an IPv4 header.
pub mod fragment {
    pub const DONT_FRAGMENT: u16 = 0x4000;
    pub const MORE: u16 = 0x2000;
    pub const OFFSET: u16 = 0x1fff;
}

/// ECN bits of the TOS field: congestion experienced (RFC 3168).
pub const ECN_CE: u8 = 3;
/// TOS of the ICMP errors that a router sends: internetwork control (RFC 1812, 4.3.2.5).
pub const TOS_INTERNETWORK_CONTROL: u8 = 0xc0;

/// What an ICMP error reports.
#[derive(Clone, Copy)]
pub struct IcmpError {
    pub kind: u8,
    pub code: u8,
    /// Of the next hop, for [`fragmentation_needed`].
    pub mtu: u16,
}

pub const TTL_EXCEEDED: IcmpError = IcmpError { kind: icmp_type::TIME_EXCEEDED, code: 0, mtu: 0 };
pub const PORT_UNREACHABLE: IcmpError = IcmpError { kind: icmp_type::UNREACHABLE, code: 3, mtu: 0 };

pub const fn fragmentation_needed(mtu: u16) -> IcmpError {
    IcmpError { kind: icmp_type::UNREACHABLE, code: 4, mtu }
}

pub const ETHERNET_BYTES: usize = 14;
pub const IPV4_BYTES: usize = 20;
pub const TCP_BYTES: usize = 20;
pub const UDP_BYTES: usize = 8;
pub const ICMP_BYTES: usize = 8;
pub const VXLAN_BYTES: usize = 8;
/// Offset of the layer 4 header in a frame without IPv4 options.
pub const L4_OFFSET: usize = ETHERNET_BYTES + IPV4_BYTES;
