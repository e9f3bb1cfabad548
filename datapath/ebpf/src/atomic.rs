//! Counting where several CPUs count.
//!
//! `core::sync::atomic` has no read-modify-write for this target, the intrinsic behind it does.

/// Adds to a counter that other CPUs add to as well.
///
/// # Safety
/// `counter` points to a live, aligned map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};

    // SAFETY: by the caller. The sum is not used: with relaxed order and a used result LLVM 22 goes wrong.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount) };
}

/// The same where the programs are only checked: intrinsics are not for stable compilers.
///
/// # Safety
/// `counter` points to a live, aligned map value.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: by the caller.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(counter) }
        .fetch_add(amount, core::sync::atomic::Ordering::Relaxed);
}
