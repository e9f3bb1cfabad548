//! Ctrl-C while a lab is brought up: the signal is recorded, so that the work stops at the next step and is undone in
//! order.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Signals that ask a program to end: Ctrl-C, `kill`, a closed terminal.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// While this value exists, signals that ask this program to end are only recorded. There is at most one.
pub struct Catch {
    before: Vec<(Signal, SigAction)>,
}

extern "C" fn note(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

impl Catch {
    /// Starts recording signals.
    ///
    /// # Errors
    /// When the kernel refuses a handler.
    pub fn new() -> Result<Self> {
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        let mut catch = Self { before: Vec::new() };
        for signal in SIGNALS {
            // SAFETY: the handler only stores into an atomic, which is async-signal-safe.
            let before = unsafe { sigaction(signal, &action) }.with_context(|| format!("catch {signal}"))?;
            catch.before.push((signal, before));
        }
        Ok(catch)
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: this handler was installed before. The call fails only for signals that cannot be caught.
            let _restored = unsafe { sigaction(*signal, before) };
        }
    }
}

/// Whether this program was asked to end.
///
/// # Errors
/// When it was.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
