//! The next hop by the kernel's routes, and its Ethernet addresses.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup},
    helpers::bpf_fib_lookup,
};
use datapath_abi::{MacBytes, NodeConfig};
use datapath_packet::{Ipv4, Macs, UDP};

use crate::{
    route::AF_INET,
    xdp::{frame::Frame, headers::Translated},
};

/// DSCP bits that routes may depend on (`IPTOS_RT_MASK`).
const ROUTED_TOS: u8 = 0x1c;

/// What the kernel is asked, and then what it has answered.
pub struct RouteQuery {
    fields: bpf_fib_lookup,
    flags: u32,
}

impl RouteQuery {
    /// For a packet that leaves by the underlay interface whatever other interfaces there are, as
    /// `bpf_redirect_neigh` takes it.
    #[inline(always)]
    pub fn of(packet: &Translated) -> Self {
        let mut query = Self::new(&packet.ip, BPF_FIB_LOOKUP_OUTPUT);
        query.fields.__bindgen_anon_2.tos = packet.ip.tos & ROUTED_TOS;
        query.fields.sport = u16::from_ne_bytes(packet.key.src_port_be);
        query.fields.dport = u16::from_ne_bytes(packet.key.dst_port_be);
        query
    }

    /// For a tunnel packet, as the tunnel's device asks: the routes say by which interface.
    #[inline(always)]
    pub fn of_tunnel(outer: &Ipv4, port: u16) -> Self {
        let mut query = Self::new(outer, 0);
        query.fields.l4_protocol = UDP;
        query.fields.dport = port.to_be();
        query
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

    /// The Ethernet addresses of the next hop, if that is known, and behind the underlay interface, and the way is wide
    /// enough; and if the frame, whose Ethernet destination was `came_to`, is for this node: the interface's own address.
    /// (A driver also gives programs what is sent to others.)
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
