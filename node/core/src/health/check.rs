//! One check of one backend: how answers become an opinion.

use std::time::Duration;

use kvstore_schema::service::HealthCheck;
use serde::{Deserialize, Serialize};

use crate::ProbeId;

/// What is thought of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Opinion {
    /// It was never asked: the first answer decides. Until then one that may not yet listen is not well.
    Unasked { presumed_well: bool },
    /// It is well; so many bad answers have come since the last good one.
    Well { bad: u16 },
    /// It is not; so many good answers have come since the last bad one.
    Unwell { good: u16, why: String },
}

/// A check that this node makes. One for each service, address and port asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Check {
    opinion: Opinion,
    /// When it is asked next; `None` while an answer is awaited.
    pub due: Option<Duration>,
    /// The question in flight.
    pub asked: Option<ProbeId>,
}

impl Check {
    /// A check that begins with an opinion, and is first made at a moment.
    pub fn new(opinion: Opinion, due: Duration) -> Self {
        Self { opinion, due: Some(due), asked: None }
    }

    /// Why the backend is not well, if it is not.
    pub fn unwell(&self) -> Option<&str> {
        match &self.opinion {
            Opinion::Unwell { why, .. } => Some(why),
            Opinion::Unasked { presumed_well: false } => Some("not asked yet"),
            Opinion::Unasked { presumed_well: true } | Opinion::Well { .. } => None,
        }
    }

    /// Takes an answer in. Whether the backend is well now that was not, or the other way round.
    pub fn answered(&mut self, spec: &HealthCheck, answer: Result<(), String>) -> bool {
        let before = self.unwell().is_some();
        let opinion = std::mem::replace(&mut self.opinion, Opinion::Well { bad: 0 });
        self.opinion = match (opinion, answer) {
            (Opinion::Unasked { .. } | Opinion::Well { .. }, Ok(())) => Opinion::Well { bad: 0 },
            (Opinion::Unasked { .. }, Err(why)) => Opinion::Unwell { good: 0, why },
            (Opinion::Well { bad }, Err(why)) if bad + 1 >= spec.unhealthy_threshold => {
                Opinion::Unwell { good: 0, why }
            }
            (Opinion::Well { bad }, Err(_)) => Opinion::Well { bad: bad + 1 },
            (Opinion::Unwell { good, .. }, Ok(())) if good + 1 >= spec.healthy_threshold => {
                Opinion::Well { bad: 0 }
            }
            (Opinion::Unwell { good, why }, Ok(())) => Opinion::Unwell { good: good + 1, why },
            // The reason stays the first one: each other one would have to be told to everybody.
            (Opinion::Unwell { why, .. }, Err(_)) => Opinion::Unwell { good: 0, why },
        };
        before != self.unwell().is_some()
    }
}

#[cfg(test)]
mod tests {
    use kvstore_schema::service::Probe;

    use super::*;

    /// `+` and `-` are answers; gives `w` or `u` for what is thought after each.
    fn course(opinion: Opinion, thresholds: (u16, u16), answers: &str) -> String {
        let (unhealthy_threshold, healthy_threshold) = thresholds;
        let spec = HealthCheck { unhealthy_threshold, healthy_threshold, ..HealthCheck::new(Probe::Tcp) };
        let mut check = Check::new(opinion, Duration::ZERO);
        let mut before = check.unwell().is_some();
        let mut after = |answer: char| {
            let answer = if answer == '+' { Ok(()) } else { Err("refused".to_owned()) };
            let changed = check.answered(&spec, answer);
            assert_eq!(changed, before != check.unwell().is_some());
            before = check.unwell().is_some();
            if before { 'u' } else { 'w' }
        };
        answers.chars().map(&mut after).collect()
    }

    #[test]
    fn a_change_of_mind_takes_as_many_answers_in_a_row_as_its_threshold() {
        let well = || Opinion::Well { bad: 0 };
        let unwell = || Opinion::Unwell { good: 0, why: "refused".to_owned() };
        let check = |opinion, thresholds, answers: &str, thought: &str| {
            assert_eq!(course(opinion, thresholds, answers), thought, "{answers}");
        };
        for presumed_well in [true, false] {
            check(Opinion::Unasked { presumed_well }, (3, 2), "+--+---", "wwwwwwu");
            check(Opinion::Unasked { presumed_well }, (3, 2), "-+-++", "uuuuw");
        }
        check(well(), (3, 2), "--+---+", "wwwwwuu");
        check(unwell(), (3, 2), "+-++--", "uuuwww");
        check(well(), (1, 1), "-+-+", "uwuw");
    }
}
