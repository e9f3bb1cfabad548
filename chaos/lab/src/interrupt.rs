//! Ctrl-C while a lab is brought up: noted, so that the work stops at the next step and is undone in order.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What asks a program to end: Ctrl-C, `kill`, a closed terminal.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// While it lives, signals that ask this program to end are only noted. One at a time.
pub struct Catch {
    before: Vec<(Signal, SigAction)>,
}

extern "C" fn note(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

impl Catch {
    /// Begins to note signals.
    ///
    /// # Errors
    /// When the kernel refuses a handler.
    pub fn new() -> Result<Self> {
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
        let mut catch = Self { before: Vec::new() };
        for signal in SIGNALS {
            // SAFETY: the handler only stores into an atomic, which is safe at any point of a program.
            let before = unsafe { sigaction(signal, &action) }.with_context(|| format!("catch {signal}"))?;
            catch.before.push((signal, before));
        }
        Ok(catch)
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: this handler was in force before. It fails only for signals that cannot be caught.
            let _restored = unsafe { sigaction(*signal, before) };
        }
    }
}

/// Whether somebody has asked this program to end.
///
/// # Errors
/// When so.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
