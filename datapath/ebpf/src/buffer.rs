//! The bytes of a packet: bounds checks and access to headers, the same for `__sk_buff` and `xdp_md`.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use datapath_packet::Wire;

/// A packet whose bytes lie between two pointers that the kernel gives the program.
pub trait Buffer {
    /// Where the bytes begin and end.
    fn bounds(&self) -> (usize, usize);

    /// A pointer into the packet; it dies with the next helper that changes the packet.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let (data, data_end) = self.bounds();
        let start = data + offset;
        if start + size_of::<T>() > data_end { None } else { Some(start as *mut T) }
    }

    /// Copies a header out of the packet. `None`: the packet is too short.
    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has checked the bounds; `Wire` types are valid for every bit pattern. Alignment is the verifier's
        // to judge: it refuses loads that the machine could not do.
        self.at::<T>(offset).map(|header| unsafe { *header })
    }

    /// Overwrites a header. False: the packet is too short.
    #[inline(always)]
    fn store<T: Wire>(&self, offset: usize, value: T) -> bool {
        match self.at::<T>(offset) {
            Some(header) => {
                // SAFETY: as in `load`; a program that writes gets packets of its own.
                unsafe { *header = value };
                true
            }
            None => false,
        }
    }
}

/// Loads both pointers in assembly: the verifier wants them straight from the context, and the compiler likes to keep the
/// 32-bit halves that the structures declare and to widen them later, which makes numbers of pointers.
macro_rules! buffer {
    ($context:ty) => {
        impl Buffer for *mut $context {
            #[cfg(target_arch = "bpf")]
            #[inline(always)]
            fn bounds(&self) -> (usize, usize) {
                let (data, data_end): (usize, usize);
                // SAFETY: two loads from the context, which outlives the program's run. Not pure: helpers move the packet.
                unsafe {
                    core::arch::asm!(
                        "{data} = *(u32 *)({context} + {data_offset})",
                        "{data_end} = *(u32 *)({context} + {data_end_offset})",
                        context = in(reg) *self,
                        data = out(reg) data,
                        data_end = lateout(reg) data_end,
                        data_offset = const core::mem::offset_of!($context, data),
                        data_end_offset = const core::mem::offset_of!($context, data_end),
                    );
                }
                (data, data_end)
            }

            /// The same where the programs are only checked.
            #[cfg(not(target_arch = "bpf"))]
            fn bounds(&self) -> (usize, usize) {
                // SAFETY: as above.
                unsafe { ((**self).data as usize, (**self).data_end as usize) }
            }
        }
    };
}

buffer!(__sk_buff);
buffer!(xdp_md);
