//! Waiting for conditions, never for durations.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long to rest between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Rests between two looks.
pub fn pause() {
    thread::sleep(PAUSE);
}

/// Looks until the condition gives a value, or the time is over.
///
/// # Errors
/// Names what was waited for, and what the last look said.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                bail!("waited {}s for {what}: {error:#}", limit.as_secs());
            }
            Err(_) => pause(),
        }
    }
}
