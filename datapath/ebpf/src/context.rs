//! A packet at a hook: its bytes, and what has been found out about it so far.

use core::ops::{Deref, DerefMut};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_csum_diff, bpf_skb_change_type, bpf_skb_pull_data},
    programs::TcContext,
};
use datapath_abi::{Direction, DropReason, FlowKey, MacBytes, V4};
use datapath_packet::{
    ETHERNET_BYTES, Ethernet, Halves, Ipv4, Macs, Start, Tcp, Transport, Wire, is_error, ports,
};

use crate::{decide::flow::Moment, maps::SCRATCH};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// Offset (8 bytes) of a fragment that would begin inside the TCP header.
const TCP_OVERWRITING_OFFSET: u16 = 1;

/// One per program run.
pub struct Packet {
    skb: *mut __sk_buff,
    scratch: *mut Scratch,
}

/// Where a program run keeps what does not fit on its stack.
///
/// It is this CPU's own: programs do not interrupt one another on a CPU. And it is a map, of whose content the verifier
/// knows nothing: on the stack it would follow each protocol that a packet may have through everything that comes after.
pub struct Scratch {
    facts: Facts,
    /// The packet's IP header as it came.
    ip: Ipv4,
    /// The decision about the packet.
    pub halves: Halves,
}

/// What is known of a packet, filled in as it is learnt: a drop is reported with all of it.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Its flow and direction.
    pub key: FlowKey<V4>,
    /// Of the sender, once looked up.
    pub src_identity: u32,
    /// Of the receiver, once looked up.
    pub dst_identity: u32,
    /// The node that sent it through the tunnel, 0 elsewhere.
    pub outer_src: V4,
    /// What the way onwards carries, once it is known that this is longer.
    pub mtu_bytes: u32,
    /// What was decided to become of it: a word of `deliver`.
    pub verdict: u64,
    /// When its flow was decided.
    pub moment: Moment,
    /// The VNI that it came with, 0 elsewhere.
    pub vni: u32,
    /// The number of the service port that it goes to; 0: none, or it was not asked.
    pub port_number: u32,
    /// The backend that was chosen for it.
    pub service: Service,
    /// The key of its flow's first direction while that is decided, before it was given a backend's address.
    pub asked: FlowKey<V4>,
    /// Its own key while it is decided as if it went the other way.
    pub answer: FlowKey<V4>,
    /// Whether it is.
    pub is_turned: bool,
    /// What an entry that holds no more says of its flow as a service's.
    pub stale: Service,
    /// Why it is dropped.
    pub reason: u8,
    /// Where the header behind that of IP begins: at 74 at the most. (A byte, so that the verifier knows a bound.)
    pub transport: u8,
    /// Which way it goes.
    pub direction: Direction,
    /// 4 once it is known to be IPv4, else 0.
    pub family: u8,
    /// TCP flags, 0 for other protocols.
    pub tcp_flags: u8,
    /// Bytes of the header behind that of IP, where it matters: TCP and what has ports.
    pub transport_bytes: u8,
    /// Whether it is a fragment that has no header behind that of IP.
    pub is_rest: bool,
    /// Whether it is an ICMP error, about another packet.
    pub is_error: bool,
    /// Whether its sender, who comes from outside, has an address of the fleet.
    pub is_from_fleet: bool,
    /// Whether it came to an address of the node that the fleet does not know.
    pub is_at_other_address: bool,
    /// Whether its backend answers the client itself.
    pub is_direct: bool,
    /// That backend's address, where another node has chosen it.
    pub direct_address: V4,
    /// And its port.
    pub direct_port_be: [u8; 2],
    /// The port of this node that its flow gets as source; zeros: none yet.
    pub own_port_be: [u8; 2],
    /// The one to take if none is free: its flow has ended, and rests; zeros: none.
    pub ended_port_be: [u8; 2],
    /// Whether no other is looked for.
    pub is_port_chosen: bool,
}

/// A flow's backend, and the frontend that its client went to.
#[derive(Clone, Copy)]
pub struct Service {
    /// The backend's number; 0: the flow is no service's, or nothing is known.
    pub backend: u32,
    /// The frontend's address.
    pub frontend: V4,
    /// The frontend's port.
    pub frontend_port_be: [u8; 2],
    /// The backend's port.
    pub port_be: [u8; 2],
    /// The backend's address.
    pub address: V4,
    /// Whether the packet goes from the backend to the client.
    pub is_reply: bool,
    /// Whether both its source and its destination are replaced.
    pub is_on_both_sides: bool,
    /// Whether the client is outside.
    pub is_from_outside: bool,
    /// Whether the backend answers the client itself, elsewhere.
    pub is_direct: bool,
}

const NO_KEY: FlowKey<V4> =
    FlowKey { src: [0; 4], dst: [0; 4], src_port_be: [0; 2], dst_port_be: [0; 2], protocol: 0, pad: [0; 3] };

impl Service {
    /// Of a flow that is none's.
    const NONE: Self = Self {
        backend: 0,
        frontend: [0; 4],
        frontend_port_be: [0; 2],
        port_be: [0; 2],
        address: [0; 4],
        is_reply: false,
        is_on_both_sides: false,
        is_from_outside: false,
        is_direct: false,
    };
}

impl Deref for Packet {
    type Target = Facts;

    #[inline(always)]
    fn deref(&self) -> &Facts {
        // SAFETY: a live map value, written whole in `new`, of which there is this one handle.
        unsafe { &(*self.scratch).facts }
    }
}

impl DerefMut for Packet {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Facts {
        // SAFETY: as in `deref`.
        unsafe { &mut (*self.scratch).facts }
    }
}

impl Packet {
    /// Nothing is known yet. `None`: never, but the verifier cannot know.
    #[inline(always)]
    pub fn new(context: &TcContext, direction: Direction) -> Option<Self> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        let facts = Facts {
            key: NO_KEY,
            src_identity: 0,
            dst_identity: 0,
            outer_src: [0; 4],
            mtu_bytes: 0,
            transport: 0,
            verdict: 0,
            moment: Moment { src_shard: 0, dst_shard: 0, src_epoch: 0, dst_epoch: 0 },
            vni: 0,
            port_number: 0,
            service: Service::NONE,
            asked: NO_KEY,
            answer: NO_KEY,
            is_turned: false,
            stale: Service::NONE,
            reason: 0,
            direction,
            family: 0,
            tcp_flags: 0,
            transport_bytes: 0,
            is_rest: false,
            is_error: false,
            is_from_fleet: false,
            is_at_other_address: false,
            is_direct: false,
            direct_address: [0; 4],
            direct_port_be: [0; 2],
            own_port_be: [0; 2],
            ended_port_be: [0; 2],
            is_port_chosen: false,
        };
        // SAFETY: a live map value, this CPU's own.
        unsafe { (*scratch).facts = facts };
        Some(Self { skb: context.skb.skb, scratch })
    }

    /// Notes why the packet is not sent on. Decisions say it so, and not by what they return, lest the verifier follow each
    /// reason by itself through what comes after.
    #[inline(always)]
    pub fn refuse(&mut self, reason: DropReason) {
        self.reason = reason as u8;
    }

    /// Whether a reason was noted.
    #[inline(always)]
    pub fn is_refused(&self) -> bool {
        self.reason != 0
    }

    /// What was decided.
    ///
    /// # Errors
    /// The reason that was noted.
    #[inline(always)]
    pub fn decided(&self) -> Result<&'static mut Halves, DropReason> {
        match self.reason {
            // SAFETY: this CPU's own. Programs do not interrupt one another on a CPU, and each decides once a run.
            0 => Ok(unsafe { &mut *self.halves() }),
            reason => Err(DropReason::from_number(reason).unwrap_or(DropReason::HelperFailed)),
        }
    }

    /// Where the decision about the packet is made.
    #[inline(always)]
    pub fn halves(&self) -> *mut Halves {
        // SAFETY: a live map value.
        unsafe { &raw mut (*self.scratch).halves }
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

    /// Interface by which it came to this node, 0 for the node's own packets.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Whether its frame is addressed to this node.
    #[inline(always)]
    pub fn is_for_here(&self) -> bool {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).pkt_type == PACKET_HOST }
    }

    /// Its length from the Ethernet header on, of all segments together when offloaded.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).len }
    }

    /// Bytes of the packet as it will be on a wire, from the IP header on: of one segment where it is offloaded.
    #[inline(always)]
    pub fn wire_bytes(&self, ip: &Ipv4) -> u32 {
        // SAFETY: the context outlives the program's run.
        match unsafe { (*self.skb).gso_size } {
            0 => u32::from(u16::from_be_bytes(ip.total_bytes_be)),
            segment_bytes => {
                u32::from(self.transport) - ETHERNET_BYTES as u32
                    + u32::from(self.transport_bytes)
                    + segment_bytes
            }
        }
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
    pub fn parse_ipv4(&mut self) -> Result<&'static Ipv4, DropReason> {
        // SAFETY: a live map value; the header is written here and nowhere else.
        let ip: &'static Ipv4 = unsafe {
            (*self.scratch).ip = self.read(ETHERNET_BYTES)?;
            &(*self.scratch).ip
        };
        self.family = 4;
        self.key.src = ip.src;
        self.key.dst = ip.dst;
        self.key.protocol = ip.protocol;

        let available_bytes = (self.bytes() as usize).saturating_sub(ETHERNET_BYTES);
        let offset = ETHERNET_BYTES + ip.header_bytes(available_bytes)?;
        self.transport = offset as u8;
        self.is_rest = ip.fragment_offset() != 0;
        // RFC 1858: a first fragment without ports, or one that writes over them, is made to pass filters.
        let cut_short = if ip.is_fragment() { DropReason::Fragment } else { DropReason::Malformed };
        match (Transport::of(ip.protocol), ip.fragment_offset()) {
            (Transport::Tcp, 0) => {
                let tcp: Tcp = self.read(offset).map_err(|_| cut_short)?;
                self.set_ports(ports(Transport::Tcp, tcp.start));
                self.tcp_flags = tcp.flags;
                self.transport_bytes = (tcp.length >> 4) << 2;
            }
            (transport @ (Transport::Ports | Transport::Icmp), 0) => {
                let start: Start = self.read(offset).map_err(|_| cut_short)?;
                self.set_ports(ports(transport, start));
                self.transport_bytes = size_of::<Start>() as u8;
                self.is_error = matches!(transport, Transport::Icmp) && is_error(start.0[0]);
            }
            (Transport::Tcp, TCP_OVERWRITING_OFFSET) => return Err(DropReason::Fragment),
            _ => {}
        }
        Ok(ip)
    }

    #[inline(always)]
    fn set_ports(&mut self, (src_port_be, dst_port_be): ([u8; 2], [u8; 2])) {
        self.key.src_port_be = src_port_be;
        self.key.dst_port_be = dst_port_be;
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

    /// The sum of a part of the packet for a checksum, with `seed`, the sum of other parts. The part's length is a
    /// multiple of 4.
    #[inline(always)]
    pub fn sum<const BYTES: usize>(&self, offset: usize, seed: u32) -> Result<u32, DropReason> {
        let Some(start) = self.at::<[u8; BYTES]>(offset) else { return Err(DropReason::HelperFailed) };
        // SAFETY: `at` has checked the bounds.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start.cast(), BYTES as u32, seed) };
        if sum < 0 { Err(DropReason::HelperFailed) } else { Ok(sum as u32) }
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
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
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
