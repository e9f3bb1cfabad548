//! Waiting for conditions, never for durations.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::interrupt;

/// How long to rest between two looks at a condition: short beside what is waited for (processes, elections),
/// long beside what a look costs.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a condition will never hold: waiting for it ends at once.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Hopeless(pub String);

/// Rests between two looks.
pub fn pause() {
    thread::sleep(PAUSE);
}

/// Looks until the condition gives a value, or the time is over, or a look says [`Hopeless`].
///
/// # Errors
/// Names what was waited for, and what the last look said.
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
    fn waiting_ends_with_a_value_with_the_time_or_without_hope() {
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
