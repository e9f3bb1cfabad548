//! The kernel programs: classifiers on the host sides of the endpoints' devices, on `warren_vxlan`, on
//! `warren_host`, and on the underlay interface; and one before the stack.
//!
//! Each decides in a module of its own and ends in [`finish`], the one place where a verdict becomes what the
//! kernel is told. A packet of a known flow costs one lookup in the flow table; the first one is decided from
//! the other maps and makes both entries of its flow.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", allow(internal_features), feature(asm_experimental_arch, core_intrinsics))]

mod atomic;
mod context;
mod decide;
mod forward;
mod hook;
mod lookup;
mod maps;
mod nat;
mod parse;
mod report;
mod service;
mod xdp;

/// On the host there is nothing to run: the crate builds there so that compiler and lints see it.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Some helpers are for GPL programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
