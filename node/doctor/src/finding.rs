//! The results of checks.

use serde::Serialize;

/// The verdict of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// The node works, but something is lost, slow, or about to fail.
    Warn,
    /// Something does not work.
    Fail,
    /// The check could not be made.
    Unknown,
}

/// The result of one check. Invariant: a finding other than [`Verdict::Ok`] has a remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name: `kebab-case`, stable across releases.
    pub check: &'static str,
    /// The verdict.
    pub verdict: Verdict,
    /// The observation, in one line.
    pub seen: String,
    /// The remedy, in one line: a command or a change of configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding without a remedy.
    pub fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, seen: seen.into(), remedy: None }
    }

    /// A finding that the node works, with a reservation.
    pub fn warn(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, remedy: Some(remedy.into()), ..Self::ok(check, seen) }
    }

    /// A finding that something does not work.
    pub fn fail(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, remedy: Some(remedy.into()), ..Self::ok(check, seen) }
    }

    /// A finding that the check could not be made; the remedy says how it can be.
    pub fn unknown(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Unknown, remedy: Some(remedy.into()), ..Self::ok(check, seen) }
    }
}

/// The number of findings of each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// [`Verdict::Ok`]
    pub ok: usize,
    /// [`Verdict::Warn`]
    pub warn: usize,
    /// [`Verdict::Fail`]
    pub fail: usize,
    /// [`Verdict::Unknown`]
    pub unknown: usize,
}

/// All findings of one examination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The number of findings of each verdict.
    pub counts: Counts,
    /// One finding for each check: those of the machine, then those of the agent.
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
