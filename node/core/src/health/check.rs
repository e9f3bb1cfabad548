//! One check of one backend: how the results of probes become a status.

use std::time::Duration;

use kvstore_schema::service::HealthCheck;
use serde::{Deserialize, Serialize};

use crate::ProbeId;

/// The status of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Status {
    /// It was never probed: the first result decides. A backend that may not listen yet is presumed to be unhealthy.
    Unknown { presumed_healthy: bool },
    /// It is healthy; `bad` probes have failed since the last success.
    Healthy { bad: u16 },
    /// It is unhealthy; `good` probes have succeeded since the last failure.
    Unhealthy { good: u16, why: String },
}

/// A check that this node makes. One for each service, address and probed port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Check {
    status: Status,
    /// When the next probe is due; `None` while a result is awaited.
    pub due: Option<Duration>,
    /// The probe in flight.
    pub asked: Option<ProbeId>,
}

impl Check {
    /// A check that begins with a status, and whose first probe is due at a time.
    pub fn new(status: Status, due: Duration) -> Self {
        Self { status, due: Some(due), asked: None }
    }

    /// Why the backend is unhealthy, if it is.
    pub fn failing(&self) -> Option<&str> {
        match &self.status {
            Status::Unhealthy { why, .. } => Some(why),
            Status::Unknown { presumed_healthy: false } => Some("not probed yet"),
            Status::Unknown { presumed_healthy: true } | Status::Healthy { .. } => None,
        }
    }

    /// Takes in the result of a probe. Returns whether the backend became healthy or unhealthy by it.
    pub fn on_result(&mut self, spec: &HealthCheck, result: Result<(), String>) -> bool {
        let before = self.failing().is_some();
        let status = std::mem::replace(&mut self.status, Status::Healthy { bad: 0 });
        self.status = match (status, result) {
            (Status::Unknown { .. } | Status::Healthy { .. }, Ok(())) => Status::Healthy { bad: 0 },
            (Status::Unknown { .. }, Err(why)) => Status::Unhealthy { good: 0, why },
            (Status::Healthy { bad }, Err(why)) if bad + 1 >= spec.unhealthy_threshold => {
                Status::Unhealthy { good: 0, why }
            }
            (Status::Healthy { bad }, Err(_)) => Status::Healthy { bad: bad + 1 },
            (Status::Unhealthy { good, .. }, Ok(())) if good + 1 >= spec.healthy_threshold => {
                Status::Healthy { bad: 0 }
            }
            (Status::Unhealthy { good, why }, Ok(())) => Status::Unhealthy { good: good + 1, why },
            // The first reason stays: each further one would have to be gossiped.
            (Status::Unhealthy { why, .. }, Err(_)) => Status::Unhealthy { good: 0, why },
        };
        before != self.failing().is_some()
    }
}

#[cfg(test)]
mod tests {
    use kvstore_schema::service::Probe;

    use super::*;

    /// `+` and `-` are results; returns `h` or `u` for the status after each.
    fn course(status: Status, thresholds: (u16, u16), results: &str) -> String {
        let (unhealthy_threshold, healthy_threshold) = thresholds;
        let spec = HealthCheck { unhealthy_threshold, healthy_threshold, ..HealthCheck::new(Probe::Tcp) };
        let mut check = Check::new(status, Duration::ZERO);
        let mut before = check.failing().is_some();
        let mut after = |result: char| {
            let result = if result == '+' { Ok(()) } else { Err("refused".to_owned()) };
            let changed = check.on_result(&spec, result);
            assert_eq!(changed, before != check.failing().is_some());
            before = check.failing().is_some();
            if before { 'u' } else { 'h' }
        };
        results.chars().map(&mut after).collect()
    }

    #[test]
    fn check_status_changes_after_as_many_results_in_a_row_as_its_threshold() {
        let healthy = || Status::Healthy { bad: 0 };
        let unhealthy = || Status::Unhealthy { good: 0, why: "refused".to_owned() };
        let check = |status, thresholds, results: &str, expected: &str| {
            assert_eq!(course(status, thresholds, results), expected, "{results}");
        };
        for presumed_healthy in [true, false] {
            check(Status::Unknown { presumed_healthy }, (3, 2), "+--+---", "hhhhhhu");
            check(Status::Unknown { presumed_healthy }, (3, 2), "-+-++", "uuuuh");
        }
        check(healthy(), (3, 2), "--+---+", "hhhhhuu");
        check(unhealthy(), (3, 2), "+-++--", "uuuhhh");
        check(healthy(), (1, 1), "-+-+", "uhuh");
    }
}
