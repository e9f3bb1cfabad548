//! A frame at the XDP hook, as the driver has it.

use aya_ebpf::{bindings::xdp_md, helpers::bpf_xdp_adjust_head, programs::XdpContext};
use datapath_packet::Wire;

use crate::buffer::Buffer;

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

    /// The interface that the frame came in by.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.context).ingress_ifindex }
    }

    /// The length from the Ethernet header on.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        let (data, data_end) = self.context.bounds();
        data_end.wrapping_sub(data) as u32
    }

    /// Copies a header out of the frame.
    #[inline(always)]
    pub fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        self.context.load(offset)
    }

    /// Overwrites a header. False: the frame is too short.
    #[inline(always)]
    pub fn write<T: Wire>(&self, offset: usize, value: T) -> bool {
        self.context.store(offset, value)
    }

    /// Makes room for `bytes` more at the beginning. False, and nothing has happened: the driver left no room.
    #[inline(always)]
    pub fn grow(&self, bytes: usize) -> bool {
        // SAFETY: the context is the kernel's; no pointer into the frame is held across the call.
        unsafe { bpf_xdp_adjust_head(self.context, -(bytes as i32)) == 0 }
    }

    /// Takes `bytes` off the beginning. False, and nothing has happened: the frame has not so many.
    #[inline(always)]
    pub fn strip(&self, bytes: usize) -> bool {
        // SAFETY: as in `grow`.
        unsafe { bpf_xdp_adjust_head(self.context, bytes as i32) == 0 }
    }
}
