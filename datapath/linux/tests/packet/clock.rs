//! The clock that the programs read.

use std::{thread, time::Duration};

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds.
pub fn coarse_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits for the next period (2^30 ns): once per period the programs check that the entry of the other direction is
/// still in the flow table.
pub fn wait_for_the_next_second() {
    let period = || coarse_ns() >> 30;
    let now = period();
    while period() == now {
        thread::sleep(Duration::from_millis(5));
    }
}
