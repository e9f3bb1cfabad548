//! A packet at a hook: its bytes, and what has been found out about it so far.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_skb_change_type, bpf_skb_pull_data},
    programs::TcContext,
};
use datapath_abi::{Direction, DropReason, FlowKey, MacBytes, V4};
use datapath_packet::{ETHERNET_BYTES, Ethernet, Ipv4, Macs, Tcp, Transport, Wire, ports};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// Offset (8 bytes) of a fragment that would begin inside the TCP header.
const TCP_OVERWRITING_OFFSET: u16 = 1;

/// One per program run. What is known is filled in as it is learnt: a drop is reported with all of it.
pub struct Packet {
    skb: *mut __sk_buff,
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

impl Packet {
    /// Nothing is known yet.
    #[inline(always)]
    pub fn new(context: &TcContext, direction: Direction) -> Self {
        Self {
            skb: context.skb.skb,
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
    pub fn skb(&self) -> *mut __sk_buff {
        self.skb
    }

    /// Interface where the program runs.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).ifindex }
    }

    /// Its length from the Ethernet header on, of all segments together when offloaded.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).len }
    }

    /// The Ethernet header.
    ///
    /// # Errors
    /// [`DropReason::UnsupportedProtocol`]: the frame has a VLAN tag, which the kernel has put aside and would
    /// put back. [`DropReason::Malformed`].
    #[inline(always)]
    pub fn ethernet(&self) -> Result<Ethernet, DropReason> {
        // SAFETY: the context outlives the program's run.
        if unsafe { (*self.skb).vlan_present } != 0 {
            return Err(DropReason::UnsupportedProtocol);
        }
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
                let tcp: Tcp = self.read(offset).map_err(|_| cut_short)?;
                (self.key.src_port_be, self.key.dst_port_be) = ports(Transport::Tcp, tcp.start);
                self.tcp_flags = tcp.flags;
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
            unsafe { bpf_skb_pull_data(self.skb, (offset + size_of::<T>()) as u32) };
            header = self.at(offset);
        }
        match header {
            // SAFETY: `at` has checked the bounds; `Wire` types are valid for every bit pattern. Alignment is
            // the verifier's to judge: it refuses loads that the machine could not do.
            Some(header) => Ok(unsafe { *header }),
            None => Err(DropReason::Malformed),
        }
    }

    /// Overwrites a header.
    #[inline(always)]
    pub fn write<T: Wire>(&self, offset: usize, value: T) -> Result<(), DropReason> {
        match self.at::<T>(offset) {
            Some(header) => {
                // SAFETY: `at` has checked the bounds; the kernel makes the packet this program's own before
                // it runs, as it sees that the program writes. Alignment as in `read`.
                unsafe { *header = value };
                Ok(())
            }
            None => Err(DropReason::HelperFailed),
        }
    }

    /// Addresses the frame to its next hop.
    #[inline(always)]
    pub fn write_macs(&self, dst: MacBytes, src: MacBytes) -> Result<(), DropReason> {
        self.write(0, Macs { dst, src })
    }

    /// Makes the packet one for the receiver, whatever Ethernet address it came with: the kernel drops others.
    #[inline(always)]
    pub fn accept(&self) -> Result<(), DropReason> {
        // SAFETY: the context is the kernel's.
        let failed =
            unsafe { (*self.skb).pkt_type != PACKET_HOST && bpf_skb_change_type(self.skb, PACKET_HOST) != 0 };
        if failed { Err(DropReason::HelperFailed) } else { Ok(()) }
    }

    /// A pointer into the linear part of the packet; it dies with the next helper that changes the packet.
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let (data, data_end) = bounds(self.skb);
        let start = data + offset;
        if start + size_of::<T>() > data_end { None } else { Some(start as *mut T) }
    }
}

/// Where the linear part of the packet begins and ends.
///
/// In assembly, because the verifier wants both straight from the context, and the compiler likes to keep the
/// 32-bit halves that the structure declares and to widen them later, which makes numbers of pointers.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn bounds(skb: *mut __sk_buff) -> (usize, usize) {
    let (data, data_end): (usize, usize);
    // SAFETY: two loads from the context, which outlives the program's run. Not pure: helpers move the packet.
    unsafe {
        core::arch::asm!(
            "{data} = *(u32 *)({skb} + {data_offset})",
            "{data_end} = *(u32 *)({skb} + {data_end_offset})",
            skb = in(reg) skb,
            data = out(reg) data,
            data_end = lateout(reg) data_end,
            data_offset = const core::mem::offset_of!(__sk_buff, data),
            data_end_offset = const core::mem::offset_of!(__sk_buff, data_end),
        );
    }
    (data, data_end)
}

/// The same where the programs are only checked.
#[cfg(not(target_arch = "bpf"))]
fn bounds(skb: *mut __sk_buff) -> (usize, usize) {
    // SAFETY: as above.
    unsafe { ((*skb).data as usize, (*skb).data_end as usize) }
}
