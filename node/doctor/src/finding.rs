//! What a check has to say.

use serde::Serialize;

/// How good a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but something is lost, slow, or about to go wrong.
    Warn,
    /// Something does not work because of it.
    Fail,
    /// Could not be learnt.
    Unknown,
}

/// The outcome of one check. Invariant: whatever is not [`Verdict::Ok`] has a remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name: `kebab-case`, the same in every release.
    pub check: &'static str,
    /// How good.
    pub verdict: Verdict,
    /// What was seen, in one line.
    pub seen: String,
    /// What to type or to change, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// Nothing to do.
    pub fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, seen: seen.into(), remedy: None }
    }

    /// Works, with a reservation.
    pub fn warn(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, remedy: Some(remedy.into()), ..Self::ok(check, seen) }
    }

    /// Does not work.
    pub fn fail(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, remedy: Some(remedy.into()), ..Self::ok(check, seen) }
    }

    /// Not learnt; the remedy says how it can be.
    pub fn unknown(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Unknown, remedy: Some(remedy.into()), ..Self::ok(check, seen) }
    }
}

/// How many findings there are of each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// As they should be.
    pub ok: usize,
    /// Reservations.
    pub warn: usize,
    /// Failures.
    pub fail: usize,
    /// Not learnt.
    pub unknown: usize,
}

/// All findings of one examination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many of each verdict.
    pub counts: Counts,
    /// One for each check: the machine's first, then the agent's.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Counts the findings.
    pub fn new(findings: Vec<Finding>) -> Self {
        let mut counts = Counts::default();
        for finding in &findings {
            match finding.verdict {
                Verdict::Ok => counts.ok += 1,
                Verdict::Warn => counts.warn += 1,
                Verdict::Fail => counts.fail += 1,
                Verdict::Unknown => counts.unknown += 1,
            }
        }
        Self { counts, findings }
    }

    /// Whether a check fails.
    pub const fn has_failure(&self) -> bool {
        self.counts.fail > 0
    }
}
