//! The kernel programs: classifiers on the host sides of the endpoints' devices, on `warren_vxlan`, on `warren_host` and on
//! the underlay interface; XDP on the underlay interface; and programs at sockets.
//!
//! A packet goes through the folders in this order: `hook` says which steps there are, `parse` reads the headers, `decide`
//! looks up the flow or decides it (with `service` and `nat`), `forward` carries out what the flow's entry says. A packet of
//! a known flow costs one lookup in the flow table; the first packet is decided from the other maps and makes both entries.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", allow(internal_features), feature(asm_experimental_arch, core_intrinsics))]

mod atomic;
mod buffer;
mod clock;
mod context;
mod decide;
mod epoch;
mod forward;
mod hook;
mod lookup;
mod maps;
mod nat;
mod parse;
mod report;
mod route;
mod service;
mod verdict;
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
