//! A packet at a hook: its bytes, and what has been found out about it so far.

use aya_ebpf::{
    helpers::{bpf_skb_change_type, bpf_skb_pull_data},
    programs::TcContext,
};
use datapath_abi::{Direction, DropReason, FlowKey, MacBytes, V4};
use datapath_packet::{ETHERNET_BYTES, Ethernet, Ipv4, Transport, Wire, ports};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// A TCP header without options.
const TCP_BYTES: usize = 20;
/// Where its flags are.
const TCP_FLAGS_OFFSET: usize = 13;
/// Offset (8 bytes) of a fragment that would begin inside the TCP header.
const TCP_OVERWRITING_OFFSET: u16 = 1;

/// One per program run. What is known is filled in as it is learnt: a drop is reported with all of it.
pub struct Packet<'a> {
    context: &'a TcContext,
    /// Which way it goes.
    pub direction: Direction,
    /// 4 once it is known to be IPv4, else 0.
    pub family: u8,
    /// TCP flags, 0 for other protocols.
    pub tcp_flags: u8,
    /// Its flow and direction.
    pub key: FlowKey<V4>,
    /// Of the sender, once looked up.
    pub src_identity: u32,
    /// Of the receiver, once looked up.
    pub dst_identity: u32,
    /// The node that sent it through the tunnel, 0 elsewhere.
    pub outer_src: V4,
}

impl<'a> Packet<'a> {
    /// Nothing is known yet.
    #[inline(always)]
    pub fn new(context: &'a TcContext, direction: Direction) -> Self {
        Self {
            context,
            direction,
            family: 0,
            tcp_flags: 0,
            key: FlowKey {
                src: [0; 4],
                dst: [0; 4],
                src_port_be: [0; 2],
                dst_port_be: [0; 2],
                protocol: 0,
                pad: [0; 3],
            },
            src_identity: 0,
            dst_identity: 0,
            outer_src: [0; 4],
        }
    }

    /// The kernel's packet, for helpers.
    #[inline(always)]
    pub fn context(&self) -> &'a TcContext {
        self.context
    }

    /// Interface where the program runs.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.context.skb.skb).ifindex }
    }

    /// Its length from the Ethernet header on, of all segments together when offloaded.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        self.context.len()
    }

    /// The Ethernet header.
    #[inline(always)]
    pub fn ethernet(&self) -> Result<Ethernet, DropReason> {
        self.read(0)
    }

    /// Reads the IPv4 header and what the flow's key needs of the one behind it.
    ///
    /// # Errors
    /// [`DropReason::Malformed`]; [`DropReason::Fragment`] for fragments made to hide their ports.
    #[inline(always)]
    pub fn parse_ipv4(&mut self) -> Result<Ipv4, DropReason> {
        let ip: Ipv4 = self.read(ETHERNET_BYTES)?;
        self.family = 4;
        self.key.src = ip.src;
        self.key.dst = ip.dst;
        self.key.protocol = ip.protocol;

        let available_bytes = (self.bytes() as usize).saturating_sub(ETHERNET_BYTES);
        let offset = ETHERNET_BYTES + ip.header_bytes(available_bytes)?;
        // RFC 1858: a first fragment without ports, or one that writes over them, is made to pass filters.
        let cut_short = if ip.is_fragment() { DropReason::Fragment } else { DropReason::Malformed };
        match (Transport::of(ip.protocol), ip.fragment_offset()) {
            (Transport::Tcp, 0) => {
                let tcp: [u8; TCP_BYTES] = self.read(offset).map_err(|_| cut_short)?;
                let [a, b, c, d, e, f, g, h, ..] = tcp;
                (self.key.src_port_be, self.key.dst_port_be) =
                    ports(Transport::Tcp, [a, b, c, d, e, f, g, h]);
                self.tcp_flags = tcp[TCP_FLAGS_OFFSET];
            }
            (transport @ (Transport::Ports | Transport::Icmp), 0) => {
                let start = self.read(offset).map_err(|_| cut_short)?;
                (self.key.src_port_be, self.key.dst_port_be) = ports(transport, start);
            }
            (Transport::Tcp, TCP_OVERWRITING_OFFSET) => return Err(DropReason::Fragment),
            _ => {}
        }
        Ok(ip)
    }

    /// Copies a header out of the packet, wherever the kernel keeps its bytes.
    #[inline(always)]
    pub fn read<T: Wire>(&self, offset: usize) -> Result<T, DropReason> {
        let mut header = self.at::<T>(offset);
        if header.is_none() {
            // SAFETY: the context is the kernel's; no pointer into the packet is held across the call.
            unsafe { bpf_skb_pull_data(self.context.skb.skb, (offset + size_of::<T>()) as u32) };
            header = self.at(offset);
        }
        match header {
            // SAFETY: `at` has checked the bounds; `Wire` types are valid for every bit pattern.
            Some(header) => Ok(unsafe { header.read_unaligned() }),
            None => Err(DropReason::Malformed),
        }
    }

    /// Overwrites a header.
    #[inline(always)]
    pub fn write<T: Wire>(&self, offset: usize, value: T) -> Result<(), DropReason> {
        match self.at::<T>(offset) {
            Some(header) => {
                // SAFETY: `at` has checked the bounds; the kernel makes the packet this program's own before
                // it runs, as it sees that the program writes.
                unsafe { header.write_unaligned(value) };
                Ok(())
            }
            None => Err(DropReason::HelperFailed),
        }
    }

    /// Addresses the frame to its next hop.
    #[inline(always)]
    pub fn write_macs(&self, dst: MacBytes, src: MacBytes) -> Result<(), DropReason> {
        self.write(0, dst)?;
        self.write(size_of::<MacBytes>(), src)
    }

    /// Makes the packet one for the receiver, whatever Ethernet address it came with: the kernel drops others.
    #[inline(always)]
    pub fn accept(&self) -> Result<(), DropReason> {
        // SAFETY: the context is the kernel's.
        let failed = unsafe {
            (*self.context.skb.skb).pkt_type != PACKET_HOST
                && bpf_skb_change_type(self.context.skb.skb, PACKET_HOST) != 0
        };
        if failed { Err(DropReason::HelperFailed) } else { Ok(()) }
    }

    /// A pointer into the linear part of the packet; it dies with the next helper that changes the packet.
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let start = self.context.data() + offset;
        if start + size_of::<T>() > self.context.data_end() { None } else { Some(start as *mut T) }
    }
}
