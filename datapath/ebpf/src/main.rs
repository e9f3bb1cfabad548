//! The kernel programs: classifiers on the host sides of the endpoints' devices, on `warren_vxlan` and on
//! `warren_host`.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod maps;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{bindings::TC_ACT_OK, macros::classifier, programs::TcContext};

    use crate::maps;

    #[classifier]
    pub fn from_endpoint(context: TcContext) -> i32 {
        if let Some(counter) = maps::COUNTERS.get_ptr_mut(0) {
            // SAFETY: a slot of this CPU.
            unsafe { (*counter).packets += u64::from(context.len()) };
        }
        TC_ACT_OK as i32
    }

    #[classifier]
    pub fn to_endpoint(_context: TcContext) -> i32 {
        TC_ACT_OK as i32
    }

    #[classifier]
    pub fn from_overlay(_context: TcContext) -> i32 {
        TC_ACT_OK as i32
    }

    #[classifier]
    pub fn from_host(_context: TcContext) -> i32 {
        TC_ACT_OK as i32
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// What the programs may call: some helpers are for GPL programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
