//! A frame before the stack: its bytes, as the driver has them.

use aya_ebpf::{bindings::xdp_md, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use datapath_packet::Wire;

/// One per program run.
pub struct Frame {
    context: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self { context: context.ctx }
    }

    /// The kernel's frame, for helpers.
    #[inline(always)]
    pub fn context(&self) -> *mut xdp_md {
        self.context
    }

    /// Interface that it came in by.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.context).ingress_ifindex }
    }

    /// Its length from the Ethernet header on.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        let (data, data_end) = bounds(self.context);
        data_end.wrapping_sub(data) as u32
    }

    /// Copies a header out of the frame.
    #[inline(always)]
    pub fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has checked the bounds; `Wire` types are valid for every bit pattern. Alignment is the verifier's to
        // judge: it refuses loads that the machine could not do.
        self.at::<T>(offset).map(|header| unsafe { *header })
    }

    /// Overwrites a header. False where the frame is too short.
    #[inline(always)]
    pub fn write<T: Wire>(&self, offset: usize, value: T) -> bool {
        match self.at::<T>(offset) {
            Some(header) => {
                // SAFETY: as in `read`; the frame is this program's own.
                unsafe { *header = value };
                true
            }
            None => false,
        }
    }

    /// Makes room for `bytes` more at its beginning. False, and nothing has happened, where the driver left none.
    #[inline(always)]
    pub fn grow(&self, bytes: usize) -> bool {
        // SAFETY: the context is the kernel's; no pointer into the frame is held across the call.
        unsafe { bpf_xdp_adjust_head(self.context, -(bytes as i32)) == 0 }
    }

    /// Takes `bytes` off its beginning. False, and nothing has happened, where it has not so many.
    #[inline(always)]
    pub fn strip(&self, bytes: usize) -> bool {
        // SAFETY: as in `grow`.
        unsafe { bpf_xdp_adjust_head(self.context, bytes as i32) == 0 }
    }

    /// A pointer into the frame; it dies when room is made or taken.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let (data, data_end) = bounds(self.context);
        let start = data + offset;
        if start + size_of::<T>() > data_end { None } else { Some(start as *mut T) }
    }
}

/// Where the frame begins and ends: in assembly, as for the packets of classifiers.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn bounds(context: *mut xdp_md) -> (usize, usize) {
    let (data, data_end): (usize, usize);
    // SAFETY: two loads from the context, which outlives the program's run. Not pure: helpers move the frame.
    unsafe {
        core::arch::asm!(
            "{data} = *(u32 *)({context} + {data_offset})",
            "{data_end} = *(u32 *)({context} + {data_end_offset})",
            context = in(reg) context,
            data = out(reg) data,
            data_end = lateout(reg) data_end,
            data_offset = const core::mem::offset_of!(xdp_md, data),
            data_end_offset = const core::mem::offset_of!(xdp_md, data_end),
        );
    }
    (data, data_end)
}

/// The same where the programs are only checked.
#[cfg(not(target_arch = "bpf"))]
fn bounds(context: *mut xdp_md) -> (usize, usize) {
    // SAFETY: as above.
    unsafe { ((*context).data as usize, (*context).data_end as usize) }
}
