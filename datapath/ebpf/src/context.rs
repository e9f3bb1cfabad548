//! What a program run knows of its packet.

use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::PerCpuArray,
    helpers::{bpf_csum_diff, bpf_skb_change_type, bpf_skb_pull_data},
    macros::btf_map,
    programs::TcContext,
};
use datapath_abi::{Direction, DropReason, FlowKey, MacBytes, PolicyVerdict, V4};
use datapath_packet::{ETHERNET_BYTES, EpochSnapshot, FlowEnd, FlowPair, Ipv4, Macs, Wire};

use crate::buffer::Buffer;

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;

#[btf_map(name = "WARREN_SCRATCH")]
static CONTEXTS: PerCpuArray<PacketContext, 1> = PerCpuArray::new();

/// The packet of this program run: the kernel's, and what is known of it.
pub struct Packet {
    skb: *mut __sk_buff,
    // A reference, and no pointer: the compiler then knows that words in it are aligned, and loads them whole.
    context: &'static mut PacketContext,
}

/// What is known of the packet. Filled in step by step; a drop is reported with all of it.
///
/// There is one for each CPU, in a map: programs do not interrupt one another on a CPU. The stack is too small for it, and
/// the verifier knows nothing of a map's content. On the stack the verifier would follow each value that a packet may have
/// through everything that comes after.
///
/// The first fields are cleared for every packet, those of the decision for every packet whose flow is not known. The last
/// ones are written before they are read.
pub struct PacketContext {
    /// The packet's flow and direction. During a decision: the key of what is evaluated (see [`Self::reply_key`] and
    /// [`Self::pre_dnat_key`]).
    pub key: FlowKey<V4>,
    /// Identity of the sender, 0 until it is known.
    pub src_identity: u32,
    /// Identity of the receiver, 0 until it is known.
    pub dst_identity: u32,
    /// Underlay address of the node that sent the packet through the tunnel, 0 at other hooks.
    pub outer_src: V4,
    /// The VNI that the packet came with, 0 at other hooks.
    pub vni: u32,
    /// What the way onwards carries, once it is known that the packet is longer.
    pub mtu_bytes: u32,
    /// The backend that another node has chosen for the packet, by direct server return.
    pub dsr_address: V4,
    /// The port of that backend.
    pub dsr_port_be: [u8; 2],
    /// Whether another node has chosen the backend, by direct server return.
    pub is_dsr: bool,
    /// Why the packet is dropped; 0: it is not.
    pub drop_reason: u8,
    /// Which way the packet goes, seen from the endpoint.
    pub direction: Direction,
    /// 4 once the packet is known to be IPv4, else 0.
    pub family: u8,
    /// Where the transport header begins: at 74 at the most. (A byte, so that the verifier knows a bound.)
    pub transport_offset: u8,
    /// Bytes of the transport header: TCP and what has ports.
    pub transport_bytes: u8,
    /// TCP flags, 0 for other protocols.
    pub tcp_flags: u8,
    /// Whether the packet is a fragment without transport header.
    pub is_later_fragment: bool,
    /// Whether the packet is an ICMP error, about another packet.
    pub is_icmp_error: bool,

    /// What the flow table knew of the packet's flow.
    pub previous: PreviousEntry,
    /// Which proof there is of the sender that is evaluated.
    pub origin: Origin,
    /// Whether a reply is evaluated as the original direction of its flow.
    pub is_evaluated_as_original: bool,
    /// The service port that the packet goes to; 0: none.
    pub service_id: u32,
    /// The backend that is chosen for the packet's flow.
    pub backend: Backend,
    /// Whether the chosen backend comes from the table of a service with affinity.
    pub is_affinity_new: bool,
    /// Whether the external client has an address of the fleet.
    pub is_fleet_client: bool,
    /// Whether the packet came to an address of this node that the fleet does not know.
    pub is_at_unlisted_address: bool,
    /// Whether the backend is to answer the external client itself (direct server return).
    pub is_dsr_wanted: bool,
    /// Whether the destination is outside of the fleet.
    pub is_to_outside: bool,
    /// Whether a workload asks for a node port of another node.
    pub is_to_remote_node_port: bool,
    /// The source that the flow gets.
    pub snat_address: V4,
    /// The port that the flow gets as its source; zeros: none, source NAT does not happen.
    pub snat_port_be: [u8; 2],
    /// The port of an ended flow, to be taken if none is free; zeros: none.
    pub reusable_port_be: [u8; 2],
    /// Whether the search for a port is over.
    pub is_port_chosen: bool,

    /// The verdict about the packet, as a word of `Verdict`.
    pub verdict: u64,
    /// What policy said of the flow.
    pub policy_verdict: PolicyVerdict,
    /// Shards and epochs of the addresses of [`Self::key`].
    pub epochs: EpochSnapshot,
    /// The key that the packet came with, while a reply is evaluated as the original direction.
    pub reply_key: FlowKey<V4>,
    /// The key with the frontend as its destination, once a backend is chosen.
    pub pre_dnat_key: FlowKey<V4>,
    /// The end that sends what is evaluated.
    pub from: FlowEnd,
    /// The end that gets what is evaluated.
    pub to: FlowEnd,
    /// The end that sent the reply, while the reply is evaluated as the original direction.
    pub replier: FlowEnd,
    /// The packet's IP header as it came.
    ip: Ipv4,
    /// Both entries, as decided.
    pair: UnsafeCell<FlowPair>,
}

/// By which proof the sender is known, of the direction that is evaluated.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// None: whoever answers by the underlay interface to a port of this node's.
    Unproven = 0,
    /// The endpoint's own device.
    Endpoint,
    /// The tunnel, and the sending node's addresses.
    Node,
    /// The tunnel: a node that has chosen the backend for an external client.
    DsrNode,
    /// This node's own stack, to endpoints and other nodes.
    Host,
    /// This node's own stack, to an endpoint of this node, for whoever the address belongs to.
    Stack,
    /// A client outside of the fleet, to a service: none is needed.
    External,
    /// Without a tunnel, the address of another node's endpoint.
    Native,
}

/// A service's backend; all zeros: none.
#[derive(Clone, Copy)]
pub struct Backend {
    pub id: u32,
    pub address: V4,
    pub port_be: [u8; 2],
}

/// What the entry of the packet's key said of the flow when it held no more, or the entry of the opposite direction when
/// that one alone was left. It says what a decision must not forget: which direction is the original one, and which backend
/// the flow has.
#[derive(Clone, Copy)]
pub struct PreviousEntry {
    /// The key of the original direction, of a translated flow.
    pub original_key: FlowKey<V4>,
    /// The flow's backend.
    pub backend: Backend,
    /// Whether the flow table was asked for the packet's key and had nothing.
    pub is_absent: bool,
    /// Whether the packet goes in the direction opposite to the flow's first packet.
    pub is_reply: bool,
    /// Whether packets of this direction are translated.
    pub is_translated: bool,
    /// Whether both their source and their destination are.
    pub is_translated_at_both_ends: bool,
    /// Whether the flow's client is external.
    pub is_of_external_client: bool,
}

impl PacketContext {
    /// Clears what must be clear for every packet.
    #[inline(always)]
    fn reset(&mut self, direction: Direction) {
        self.key = FlowKey::default();
        (self.src_identity, self.dst_identity) = (0, 0);
        (self.outer_src, self.vni, self.mtu_bytes) = ([0; 4], 0, 0);
        (self.dsr_address, self.dsr_port_be, self.is_dsr) = ([0; 4], [0; 2], false);
        (self.drop_reason, self.direction, self.family) = (0, direction, 0);
        (self.transport_offset, self.transport_bytes, self.tcp_flags) = (0, 0, 0);
        (self.is_later_fragment, self.is_icmp_error) = (false, false);
    }

    /// Clears what must be clear before a decision.
    #[inline(never)]
    pub fn reset_decision(&mut self) {
        const NO_BACKEND: Backend = Backend { id: 0, address: [0; 4], port_be: [0; 2] };
        self.previous = PreviousEntry {
            original_key: FlowKey::default(),
            backend: NO_BACKEND,
            is_absent: false,
            is_reply: false,
            is_translated: false,
            is_translated_at_both_ends: false,
            is_of_external_client: false,
        };
        (self.origin, self.is_evaluated_as_original) = (Origin::Unproven, false);
        (self.service_id, self.backend, self.is_affinity_new) = (0, NO_BACKEND, false);
        (self.is_fleet_client, self.is_at_unlisted_address) = (false, false);
        (self.is_dsr_wanted, self.is_to_outside, self.is_to_remote_node_port) = (false, false, false);
        (self.snat_address, self.snat_port_be, self.reusable_port_be) = ([0; 4], [0; 2], [0; 2]);
        self.is_port_chosen = false;
    }
}

impl Deref for Packet {
    type Target = PacketContext;

    #[inline(always)]
    fn deref(&self) -> &PacketContext {
        self.context
    }
}

impl DerefMut for Packet {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut PacketContext {
        self.context
    }
}

impl Packet {
    /// Nothing is known yet. `None`: never, but the verifier cannot know.
    #[inline(always)]
    pub fn new(context: &TcContext, direction: Direction) -> Option<Self> {
        // SAFETY: a live map value of this CPU's own, of which there is this one handle. Zeros and whatever an earlier run has
        // left are valid.
        let known: &'static mut PacketContext = unsafe { &mut *CONTEXTS.get_ptr_mut(0)? };
        known.reset(direction);
        Some(Self { skb: context.skb.skb, context: known })
    }

    /// Runs a step of the pipeline as a BPF function of its own.
    ///
    /// The verifier forces this, for two reasons. A step gets a stack frame of its own, which is free again for the next
    /// step: 512 bytes would not hold all of them in one. And the step's result goes by the packet context, whose content
    /// the verifier does not know: by a return value the verifier would follow each reason for a drop, and each way through
    /// the step, by itself through everything that comes after (200,000 instructions instead of 100,000).
    ///
    /// # Errors
    /// Those of the step.
    #[inline(always)]
    pub fn step(&mut self, step: impl FnOnce(&mut Self) -> Result<(), DropReason>) -> Result<(), DropReason> {
        #[inline(never)]
        fn run(packet: &mut Packet, step: impl FnOnce(&mut Packet) -> Result<(), DropReason>) {
            packet.drop_reason = match step(packet) {
                Ok(()) => 0,
                Err(reason) => reason as u8,
            };
        }
        run(self, step);
        match self.drop_reason {
            0 => Ok(()),
            reason => Err(DropReason::from_number(reason).unwrap_or(DropReason::HelperFailed)),
        }
    }

    /// The IP header as the packet came with it.
    #[inline(always)]
    pub fn ip(&self) -> &'static Ipv4 {
        let ip: *const Ipv4 = &self.context.ip;
        // SAFETY: a live map value; the header is written once a run, by `set_ip`, before it is read.
        unsafe { &*ip }
    }

    /// Keeps the IP header.
    #[inline(always)]
    pub fn set_ip(&mut self, ip: Ipv4) -> &'static Ipv4 {
        self.context.ip = ip;
        self.ip()
    }

    /// Where both entries of the flow are decided.
    #[inline(always)]
    pub fn pair(&self) -> &'static mut FlowPair {
        // SAFETY: this CPU's own, and each decision is used by one caller at a time.
        unsafe { &mut *self.context.pair.get() }
    }

    /// The kernel's packet, for helpers.
    #[inline(always)]
    pub fn skb(&self) -> *mut __sk_buff {
        self.skb
    }

    /// The interface where the program runs.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).ifindex }
    }

    /// The interface by which the packet came to this node, 0 for the node's own packets.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Whether the frame is addressed to this node.
    #[inline(always)]
    pub fn is_for_this_host(&self) -> bool {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).pkt_type == PACKET_HOST }
    }

    /// Whether the frame has a VLAN tag.
    #[inline(always)]
    pub fn has_vlan_tag(&self) -> bool {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// The length from the Ethernet header on, of all segments together when offloaded.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.skb).len }
    }

    /// The length that the packet will have on a wire, from the IP header on: of one segment where it is offloaded.
    #[inline(always)]
    pub fn wire_bytes(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        match unsafe { (*self.skb).gso_size } {
            0 => u32::from(u16::from_be_bytes(self.ip().total_bytes_be)),
            segment_bytes => {
                u32::from(self.transport_offset) - ETHERNET_BYTES as u32
                    + u32::from(self.transport_bytes)
                    + segment_bytes
            }
        }
    }

    /// Copies a header out of the packet, wherever the kernel keeps its bytes.
    ///
    /// # Errors
    /// [`DropReason::Malformed`]: the packet is too short.
    #[inline(always)]
    pub fn read<T: Wire>(&self, offset: usize) -> Result<T, DropReason> {
        let mut header = self.skb.at::<T>(offset);
        if header.is_none() {
            // SAFETY: the context is the kernel's; no pointer into the packet is held across the call.
            unsafe { bpf_skb_pull_data(self.skb, (offset + size_of::<T>()) as u32) };
            header = self.skb.at(offset);
        }
        match header {
            // SAFETY: as in `Buffer::load`.
            Some(header) => Ok(unsafe { *header }),
            None => Err(DropReason::Malformed),
        }
    }

    /// Overwrites a header.
    ///
    /// # Errors
    /// [`DropReason::HelperFailed`]: never, but the verifier cannot know.
    #[inline(always)]
    pub fn write<T: Wire>(&self, offset: usize, value: T) -> Result<(), DropReason> {
        if self.skb.store(offset, value) { Ok(()) } else { Err(DropReason::HelperFailed) }
    }

    /// The sum of a part of the packet for a checksum, with `seed`, the sum of other parts. The part's length is a multiple
    /// of 4.
    ///
    /// # Errors
    /// [`DropReason::HelperFailed`].
    #[inline(always)]
    pub fn sum<const BYTES: usize>(&self, offset: usize, seed: u32) -> Result<u32, DropReason> {
        let Some(start) = self.skb.at::<[u8; BYTES]>(offset) else { return Err(DropReason::HelperFailed) };
        // SAFETY: `at` has checked the bounds.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start.cast(), BYTES as u32, seed) };
        if sum < 0 { Err(DropReason::HelperFailed) } else { Ok(sum as u32) }
    }

    /// Addresses the frame to its next hop.
    ///
    /// # Errors
    /// As [`Self::write`].
    #[inline(always)]
    pub fn write_macs(&self, dst: MacBytes, src: MacBytes) -> Result<(), DropReason> {
        self.write(0, Macs { dst, src })
    }

    /// Marks the packet as addressed to the receiver's host: the kernel drops others.
    ///
    /// # Errors
    /// [`DropReason::HelperFailed`].
    #[inline(always)]
    pub fn mark_for_this_host(&self) -> Result<(), DropReason> {
        // SAFETY: the context is the kernel's.
        let failed = !self.is_for_this_host() && unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) != 0 };
        if failed { Err(DropReason::HelperFailed) } else { Ok(()) }
    }
}
