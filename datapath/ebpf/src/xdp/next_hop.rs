//! Where the kernel's routes lead, and the Ethernet addresses of that way.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup},
    helpers::bpf_fib_lookup,
};
use datapath_abi::{MacBytes, NodeConfig};
use datapath_packet::{Ipv4, Macs, UDP};

use crate::{
    lookup::AF_INET,
    xdp::{frame::Frame, packet::Rewritten},
};

/// DSCP bits that routes may depend on (`IPTOS_RT_MASK`).
const ROUTED_TOS: u8 = 0x1c;

/// What the kernel is asked, and then what it has answered.
pub struct Question {
    fields: bpf_fib_lookup,
    flags: u32,
}

impl Question {
    /// For a packet that leaves by the underlay interface whatever other interfaces there are, as
    /// `bpf_redirect_neigh` takes it.
    #[inline(always)]
    pub fn of(packet: &Rewritten) -> Self {
        let mut question = Self::new(&packet.ip, BPF_FIB_LOOKUP_OUTPUT);
        question.fields.__bindgen_anon_2.tos = packet.ip.tos & ROUTED_TOS;
        question.fields.sport = u16::from_ne_bytes(packet.key.src_port_be);
        question.fields.dport = u16::from_ne_bytes(packet.key.dst_port_be);
        question
    }

    /// For a tunnel packet, as the tunnel's device asks: by which interface is the routes' to say.
    #[inline(always)]
    pub fn of_tunnel(outer: &Ipv4, port: u16) -> Self {
        let mut question = Self::new(outer, 0);
        question.fields.l4_protocol = UDP;
        question.fields.dport = port.to_be();
        question
    }

    #[inline(always)]
    fn new(ip: &Ipv4, flags: u32) -> Self {
        // SAFETY: integers and byte arrays only.
        let mut fields: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        fields.family = AF_INET;
        fields.l4_protocol = ip.protocol;
        fields.__bindgen_anon_1.tot_len = u16::from_be_bytes(ip.total_bytes_be);
        fields.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(ip.src);
        fields.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(ip.dst);
        Self { fields, flags }
    }

    /// The Ethernet addresses of the next hop, if it is known, behind the underlay interface and wide enough, and if
    /// the frame, which came to `came_to`, is for this node: that is the interface's own address. (A driver also gives
    /// programs what others are sent.)
    #[inline(always)]
    pub fn ask(&mut self, frame: &Frame, config: &NodeConfig, came_to: MacBytes) -> Option<Macs> {
        self.fields.ifindex = config.underlay_ifindex;
        // SAFETY: context and structure are of the sizes that the kernel is told.
        let answer = unsafe {
            bpf_fib_lookup(
                frame.context().cast(),
                &raw mut self.fields,
                size_of::<bpf_fib_lookup>() as i32,
                self.flags,
            )
        };
        let is_here = answer as u32 == BPF_FIB_LKUP_RET_SUCCESS
            && self.fields.ifindex == config.underlay_ifindex
            && self.fields.smac == came_to;
        if is_here { Some(Macs { dst: self.fields.dmac, src: self.fields.smac }) } else { None }
    }
}
