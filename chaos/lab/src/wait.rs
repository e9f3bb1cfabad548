//! Waiting for conditions, never for durations.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::interrupt;

/// The pause between two checks of a condition: short beside what is waited for (processes, elections), long beside
/// the cost of a check.
const PAUSE: Duration = Duration::from_millis(20);

/// A condition will never hold: waiting for it ends at once, with this reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Hopeless(pub String);

/// Pauses between two checks.
pub fn pause() {
    thread::sleep(PAUSE);
}

/// Checks a condition until it gives a value, the time is over, or a check fails with [`Hopeless`].
///
/// # Errors
/// Names the condition, and the last check's error.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if error.is::<Hopeless>() => return Err(error.context(format!("waited for {what}"))),
            Err(error) if Instant::now() >= deadline => {
                bail!("waited {}s for {what}: {error:#}", limit.as_secs());
            }
            Err(_) => pause(),
        }
        interrupt::check()?;
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn wait_ends_with_a_value_a_timeout_or_an_error() {
        let mut looks = 0;
        let third = until("the third look", Duration::from_secs(60), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(anyhow!("look {looks}")) }
        });
        assert_eq!(third.unwrap(), 3);
        let late = until("nothing", Duration::ZERO, || Err::<(), _>(anyhow!("not there")));
        assert_eq!(late.unwrap_err().to_string(), "waited 0s for nothing: not there");
        let never = until("a dead process", Duration::from_secs(60), || {
            Err::<(), _>(Hopeless("it has ended".to_owned()).into())
        });
        assert_eq!(format!("{:#}", never.unwrap_err()), "waited for a dead process: it has ended");
    }
}
