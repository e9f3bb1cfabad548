//! The kernel's clock status.

use std::mem;

/// Whether the clock is synchronised, and its maximum error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) synchronised: bool,
    /// The kernel's bound of the error, which grows while the clock is not synchronised.
    pub(crate) max_error_us: u64,
}

/// Reads the status by adjtimex(2), which needs no privilege. `None` if a sandbox forbids the call.
pub(crate) fn clock() -> Option<Clock> {
    // SAFETY: `timex` is plain integers, for which all bits zero is a value; `modes` 0 only reads.
    let mut timex: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live `timex` that has no other reference, and the call does not keep it.
    let state = unsafe { libc::adjtimex(&mut timex) };
    let flags = timex.status;
    (state != -1).then(|| Clock {
        synchronised: state != libc::TIME_ERROR && flags & libc::STA_UNSYNC == 0,
        max_error_us: u64::try_from(timex.maxerror).unwrap_or(0),
    })
}
