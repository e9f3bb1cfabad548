//! Pauses between attempts: doubling, capped, jittered.

use std::time::Duration;

/// The first pause. Short: a member that restarts is back in a moment.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause: what a fleet waits at the most after etcd is back.
const LONGEST: Duration = Duration::from_secs(5);

/// One row of attempts.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Before the first failure.
    pub fn new() -> Self {
        Self { next: FIRST }
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// How long to wait after this failure: between half and all of the step, so that a fleet whose etcd comes
    /// back does not come back in one moment.
    pub fn step(&mut self) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::new();
        assert!(backoff.step() <= FIRST);
        let pauses: Vec<Duration> = (0..20).map(|_| backoff.step()).collect();
        assert!(pauses.iter().all(|pause| *pause <= LONGEST));
        assert!(pauses[19] >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.step() <= FIRST);
    }
}
