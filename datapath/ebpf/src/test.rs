//! Programs for packet tests and benches: they give a packet the tunnel key of a packet from the tunnel, and do nothing, to
//! compare times with.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

mod programs {
    use aya_ebpf::{
        bindings::{
            TC_ACT_OK, TC_ACT_SHOT, bpf_tunnel_key,
            xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
        },
        btf_maps::{Array, ProgramArray},
        helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
        macros::{btf_map, classifier, xdp},
        programs::{TcContext, XdpContext},
    };

    /// Slot 0: the program under test.
    #[btf_map(name = "TEST_PROGRAMS")]
    static PROGRAMS: ProgramArray<1> = ProgramArray::new();

    /// What [`send`] sends.
    #[btf_map(name = "TEST_FRAME")]
    static FRAME: Array<[u64; 8], 1> = Array::new();

    /// Gives the packet a tunnel key and runs the program under test: identity in `cb[0]`, the sending node's underlay
    /// address in `cb[1]` (as a number).
    #[classifier]
    pub fn through_tunnel(context: TcContext) -> i32 {
        let [identity, underlay, ..] = *context.cb() else {
            return TC_ACT_SHOT;
        };
        // SAFETY: integers and byte arrays only.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = identity;
        key.tunnel_ttl = 64;
        // What is set as the local address is read back as the remote one: the key is meant for sending.
        key.__bindgen_anon_3.local_ipv4 = underlay;
        // SAFETY: the size is the key's.
        let failed = unsafe {
            bpf_skb_set_tunnel_key(context.skb.skb, &mut key, size_of::<bpf_tunnel_key>() as u32, 0)
        };
        if failed != 0 {
            return TC_ACT_SHOT;
        }
        // SAFETY: returns only when slot 0 is empty.
        unsafe { PROGRAMS.tail_call(&context, 0) };
        TC_ACT_SHOT
    }

    /// Runs the program under test at the first run; at the second, on the same packet, reads the tunnel key
    /// that it left there: identity into `cb[1]`, the receiving node's underlay address into `cb[2]`.
    #[classifier]
    pub fn then_tunnel_key(mut context: TcContext) -> i32 {
        let skb = context.skb.skb;
        let [second_run, identity, underlay, ..] = context.cb_mut() else {
            return TC_ACT_SHOT;
        };
        if *second_run == 0 {
            *second_run = 1;
            // SAFETY: returns only when slot 0 is empty.
            unsafe { PROGRAMS.tail_call(&context, 0) };
            return TC_ACT_SHOT;
        }
        // SAFETY: integers and byte arrays only.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        // SAFETY: the size is the key's.
        let failed = unsafe { bpf_skb_get_tunnel_key(skb, &mut key, size_of::<bpf_tunnel_key>() as u32, 0) };
        if failed != 0 {
            return TC_ACT_SHOT;
        }
        *identity = key.tunnel_id;
        // SAFETY: written by the helper. What was set as the remote address is read back as the local one.
        *underlay = unsafe { key.__bindgen_anon_3.local_ipv4 };
        TC_ACT_OK
    }

    /// Does nothing: the cost of a program run by itself, and behind [`through_tunnel`].
    #[classifier]
    pub fn nothing(_context: TcContext) -> i32 {
        TC_ACT_OK
    }

    /// The same for XDP. A veth also wants some program at its other end before it delivers there what one of ours sends back.
    #[xdp]
    pub fn nothing_early(_context: XdpContext) -> u32 {
        XDP_PASS
    }

    /// Drops every frame.
    #[xdp]
    pub fn end(_context: XdpContext) -> u32 {
        XDP_DROP
    }

    /// Sends the frame that the map has by the interface that it is said to come from. (In a test run with live frames their
    /// memory is used again, as the last receiver left it.)
    #[xdp]
    pub fn send(context: XdpContext) -> u32 {
        let start = context.data() as *mut [u64; 8];
        let Some(frame) = FRAME.get(0) else { return XDP_ABORTED };
        if context.data() + size_of::<[u64; 8]>() > context.data_end() {
            return XDP_ABORTED;
        }
        // SAFETY: there are as many bytes, and any alignment will do.
        unsafe { start.write_unaligned(*frame) };
        XDP_TX
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
