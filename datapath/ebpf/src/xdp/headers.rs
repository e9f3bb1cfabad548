//! The packets that XDP forwards: whole TCP and UDP ones, in the middle of a connection.

use datapath_abi::{FlowEntry, FlowKey, V4};
use datapath_packet::{
    ETHERNET_BYTES, Ipv4, PortPlace, TCP, Tcp, Transport, TransportStart, UDP, WirePort, flag,
    is_checksum_partial, ports, translated_checksum,
};

use crate::xdp::frame::Frame;

/// The first byte of an IPv4 header without options.
const VERSION_LENGTH: u8 = 0x45;
/// A packet that begins or ends a connection changes more than an entry's counts.
const CONNECTION_STATE: u8 = flag::SYN | flag::FIN | flag::RST;

const NO_KEY: FlowKey<V4> =
    FlowKey { src: [0; 4], dst: [0; 4], src_port_be: [0; 2], dst_port_be: [0; 2], protocol: 0, pad: [0; 3] };

/// The headers, from IP on.
pub struct Headers {
    pub ip: Ipv4,
    pub key: FlowKey<V4>,
    /// The checksum of TCP or UDP.
    checksum_be: [u8; 2],
    /// TCP flags, 0 for UDP.
    pub tcp_flags: u8,
}

/// The headers as the packet goes on with them.
pub struct Translated {
    pub ip: Ipv4,
    pub key: FlowKey<V4>,
    checksum_be: [u8; 2],
    /// Whether ports and checksum have changed.
    is_translated: bool,
}

/// Whether an IP packet fills its frame of `frame_bytes`, and is neither a fragment nor has options.
#[inline(always)]
pub fn is_whole(ip: &Ipv4, frame_bytes: u32) -> bool {
    ip.version_length == VERSION_LENGTH
        && !ip.is_fragment()
        && u32::from(u16::from_be_bytes(ip.total_bytes_be)) + ETHERNET_BYTES as u32 == frame_bytes
}

impl Headers {
    /// Nothing is known yet. (Of an `Option` of several words the compiler may spill what was never written, which the
    /// verifier refuses.)
    pub const NONE: Self = Self {
        ip: Ipv4 {
            version_length: 0,
            tos: 0,
            total_bytes_be: [0; 2],
            id_be: [0; 2],
            fragment_be: [0; 2],
            ttl: 0,
            protocol: 0,
            checksum_be: [0; 2],
            src: [0; 4],
            dst: [0; 4],
        },
        key: NO_KEY,
        checksum_be: [0; 2],
        tcp_flags: 0,
    };

    /// Reads the headers of a packet behind `BASE` bytes. False: XDP does not forward packets of this kind.
    ///
    /// A packet that never was on a wire has no checksum that could be updated, and may be several in one: kernels that pass
    /// packets on between machines on one host leave such, and so does receive offload. The stack gets them.
    #[inline(always)]
    pub fn parse<const BASE: usize>(&mut self, frame: &Frame) -> bool {
        let at = BASE + ETHERNET_BYTES;
        let Some(ip) = frame.read::<Ipv4>(at) else { return false };
        let total_bytes = u16::from_be_bytes(ip.total_bytes_be);
        // Behind a short packet there may be padding.
        if ip.version_length != VERSION_LENGTH
            || ip.is_fragment()
            || ip.ttl <= 1
            || u32::from(total_bytes) + at as u32 > frame.bytes()
        {
            return false;
        }
        let at = at + size_of::<Ipv4>();
        let Some(start) = frame.read::<TransportStart>(at) else { return false };
        let header_bytes = if ip.protocol == TCP {
            let Some(tcp) = frame.read::<Tcp>(at) else { return false };
            let [_, _, high, low, _, _] = tcp.rest;
            self.checksum_be = [high, low];
            self.tcp_flags = tcp.flags;
            size_of::<Tcp>()
        } else {
            let TransportStart([.., high, low]) = start;
            self.checksum_be = [high, low];
            size_of::<TransportStart>()
        };
        let is_forwarded = matches!(ip.protocol, TCP | UDP)
            && self.tcp_flags & CONNECTION_STATE == 0
            && usize::from(total_bytes) >= size_of::<Ipv4>() + header_bytes
            && !is_checksum_partial(self.checksum_be, &ip);
        (self.key.src_port_be, self.key.dst_port_be) = ports(Transport::Ports, start);
        (self.key.src, self.key.dst, self.key.protocol) = (ip.src, ip.dst, ip.protocol);
        self.ip = ip;
        is_forwarded
    }

    /// The headers as the entry translates them, with the IP header `ip` but for its addresses.
    #[inline(always)]
    pub fn translated(&self, ip: Ipv4, entry: &FlowEntry) -> Translated {
        if !entry.is_translated() {
            return Translated { ip, key: self.key, checksum_be: self.checksum_be, is_translated: false };
        }
        let key = entry.rewritten(&self.key);
        Translated {
            ip: ip.with_addresses(key.src, key.dst),
            key,
            checksum_be: translated_checksum(self.checksum_be, &self.key, &key),
            is_translated: true,
        }
    }
}

impl Translated {
    /// Writes what has changed into the frame, behind `BASE` bytes. False: the frame is too short.
    #[inline(always)]
    pub fn write<const BASE: usize>(&self, frame: &Frame) -> bool {
        let at = BASE + ETHERNET_BYTES;
        if !frame.write(at, self.ip) {
            return false;
        }
        if !self.is_translated {
            return true;
        }
        let at = at + size_of::<Ipv4>();
        let Some(place) = PortPlace::of(self.key.protocol, true) else { return false };
        let checksum = if place.checksum == Tcp::CHECKSUM { at + Tcp::CHECKSUM } else { at + UDP_CHECKSUM };
        frame.write(at, WirePort(self.key.src_port_be))
            && frame.write(at + size_of::<WirePort>(), WirePort(self.key.dst_port_be))
            && frame.write(checksum, WirePort(self.checksum_be))
    }
}

const UDP_CHECKSUM: usize = 6;
