//! What packet tests and benches need in the kernel: a way to make a packet look as if it came out of the
//! tunnel, and a program that does nothing, to compare times with.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use core::hint::black_box;

    use aya_ebpf::{
        EbpfContext,
        bindings::{TC_ACT_OK, TC_ACT_SHOT, bpf_tunnel_key},
        btf_maps::ProgramArray,
        helpers::bpf_skb_set_tunnel_key,
        macros::{btf_map, classifier},
        programs::TcContext,
    };

    /// Slot 0: `from_overlay`.
    #[btf_map(name = "TEST_PROGRAMS")]
    static PROGRAMS: ProgramArray<1> = ProgramArray::new();

    /// Gives the packet a tunnel key and runs `from_overlay`: identity in `cb[0]`, the sending node's underlay
    /// address in `cb[1]` (as a number).
    #[classifier]
    pub fn through_tunnel(context: TcContext) -> i32 {
        let [identity, underlay, ..] = *context.cb() else {
            return TC_ACT_SHOT as i32;
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
            return TC_ACT_SHOT as i32;
        }
        // SAFETY: returns only when slot 0 is empty.
        let _ = black_box(unsafe { PROGRAMS.tail_call(&context, 0) });
        TC_ACT_SHOT as i32
    }

    /// What a program run costs by itself.
    #[classifier]
    pub fn nothing(context: TcContext) -> i32 {
        let _ = context.as_ptr();
        TC_ACT_OK as i32
    }

    /// The same after a tail call with a tunnel key: what [`through_tunnel`] costs by itself.
    #[classifier]
    pub fn nothing_behind_tunnel(_context: TcContext) -> i32 {
        TC_ACT_OK as i32
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
