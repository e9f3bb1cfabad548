//! The kernel's opinion of its own clock.

use std::mem;

/// Whether somebody keeps the clock right, and how wrong it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) synchronised: bool,
    /// The kernel's bound of the error; grows while nobody corrects it.
    pub(crate) max_error_us: u64,
}

/// Asks by adjtimex(2) without changing anything, which needs no permission. `None` where a sandbox refuses it.
pub(crate) fn clock() -> Option<Clock> {
    // SAFETY: `timex` is plain integers, for which all bits zero is a value; `modes` 0 asks only.
    let mut timex: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live `timex` that nobody else has, and the call keeps none of it.
    let state = unsafe { libc::adjtimex(&mut timex) };
    let flags = timex.status;
    (state != -1).then(|| Clock {
        synchronised: state != libc::TIME_ERROR && flags & libc::STA_UNSYNC == 0,
        max_error_us: u64::try_from(timex.maxerror).unwrap_or(0),
    })
}
