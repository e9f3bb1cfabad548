//! A running probe: it can be observed and stopped.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::report::{Log, Report};
use crate::wait;

/// What a probe's thread and its owner share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
}

impl Shared {
    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no holder of this lock panics")
    }

    /// Whether the probe must stop sending.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A probe that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Running {
    shared: Shared,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Running {
    pub(super) fn start(
        unit: &'static str,
        work: impl FnOnce(&Shared) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let shared = Shared { log: Arc::new(Mutex::new(Log::new(unit))), stop: Arc::default() };
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name(format!("probe {unit}"))
            .spawn(move || work(&theirs))
            .context("start the thread of a probe")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What the probe has observed so far. What is under way counts as neither arrived nor lost.
    pub fn report(&self) -> Report {
        self.shared.log().report()
    }

    /// Waits until this many more have arrived: the network carries traffic now.
    ///
    /// # Errors
    /// When they have not arrived within the limit, or the probe has ended by itself.
    pub fn wait_for_more(&self, count: u64, limit: Duration) -> Result<()> {
        let wanted = self.report().arrived + count;
        wait::until(&format!("{count} more of a probe's to arrive"), limit, || {
            let report = self.report();
            ensure!(report.arrived >= wanted, "{} of {wanted} {}", report.arrived, report.unit);
            Ok(())
        })
    }

    /// Stops sending, waits for what is under way, and returns the report.
    ///
    /// # Errors
    /// When the probe itself failed: its report would mean nothing.
    pub fn stop(mut self) -> Result<Report> {
        self.end()?;
        Ok(self.report())
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}
