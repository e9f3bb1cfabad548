//! The result of a run: the time line, the losses by phase and cause, the verdict.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::probe::Report;

/// A line of the time line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// Milliseconds since the start of the scenario.
    pub at_ms: u64,
    /// What was done or observed.
    pub text: String,
}

/// An expectation and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation {
    /// Its line in the file.
    pub line: usize,
    /// As it was written.
    pub text: String,
    /// Whether it held.
    pub held: bool,
    /// What was observed.
    pub seen: String,
}

/// A trouble of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleReport {
    /// When the first was sent.
    pub begin_ms: u64,
    /// When the last was sent, or the stream worked again.
    pub end_ms: u64,
    /// The mark before its beginning.
    pub phase: String,
    /// The cause.
    pub cause: String,
    /// How many.
    pub count: u64,
    /// The first of them in words.
    pub first: String,
}

/// The report of one probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Its name.
    pub name: String,
    /// What is counted.
    pub unit: String,
    /// How many were sent.
    pub sent: u64,
    /// How many arrived.
    pub arrived: u64,
    /// How many were lost in any way.
    pub lost: u64,
    /// Median, 99th percentile and maximum, in milliseconds.
    pub latency_ms: Option<[f64; 3]>,
    /// The longest time in which the probe was not scheduled.
    pub longest_pause_ms: u64,
    /// Segments that TCP retransmitted.
    pub retransmissions: Option<u64>,
    /// What went wrong.
    pub troubles: Vec<TroubleReport>,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The scenario.
    pub scenario: String,
    /// Its title.
    pub title: String,
    /// The seed of the random choices.
    pub seed: u64,
    /// Whether every expectation held and nothing else went wrong.
    pub passed: bool,
    /// Why the run ended early.
    pub broken: Option<String>,
    /// Errors in agents' logs that the scenario does not allow.
    pub errors: Vec<String>,
    /// The expectations and their results.
    pub expectations: Vec<Expectation>,
    /// The reports of the probes.
    pub probes: Vec<ProbeReport>,
    /// What was done and observed, by time.
    pub timeline: Vec<TimelineEntry>,
    /// Milliseconds since the start of the scenario.
    pub took_ms: u64,
}

/// The moments to which times in a report are relative.
#[derive(Debug, Clone)]
pub struct Clock {
    /// The start of the scenario.
    pub origin: Instant,
    /// The marks so far, in order.
    pub marks: Vec<(String, Instant)>,
}

impl Clock {
    pub fn ms(&self, moment: Instant) -> u64 {
        moment.saturating_duration_since(self.origin).as_millis() as u64
    }

    /// When a mark was last set; without a mark, the start.
    pub fn since(&self, mark: Option<&str>) -> Instant {
        let found = mark.and_then(|mark| self.marks.iter().rev().find(|(name, _)| name == mark));
        found.map_or(self.origin, |(_, moment)| *moment)
    }

    fn phase(&self, moment: Instant) -> String {
        let last = self.marks.iter().rev().find(|(_, at)| *at <= moment);
        last.map_or("begin", |(name, _)| name).to_owned()
    }
}

impl ProbeReport {
    pub fn of(name: &str, report: &Report, clock: &Clock) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Self {
            name: name.to_owned(),
            unit: report.unit.to_owned(),
            sent: report.sent,
            arrived: report.arrived,
            lost: report.lost(),
            latency_ms: report.latency.map(|it| [ms(it.median), ms(it.p99), ms(it.max)]),
            longest_pause_ms: report.longest_pause.as_millis() as u64,
            retransmissions: report.retransmissions,
            troubles: report
                .troubles
                .iter()
                .map(|trouble| TroubleReport {
                    begin_ms: clock.ms(trouble.begin),
                    end_ms: clock.ms(trouble.end),
                    phase: clock.phase(trouble.begin),
                    cause: trouble.cause.to_string(),
                    count: trouble.count,
                    first: trouble.first.clone(),
                })
                .collect(),
        }
    }

    fn moments(&self) -> impl Iterator<Item = TimelineEntry> {
        self.troubles.iter().map(|trouble| TimelineEntry {
            at_ms: trouble.begin_ms,
            text: format!(
                "  {}: {} {} until {} ({})",
                self.name,
                trouble.count,
                trouble.cause,
                seconds(trouble.end_ms),
                trouble.first
            ),
        })
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1_000, ms % 1_000)
}

impl RunReport {
    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\nseed {}\n\nTime line\n", self.scenario, self.title, self.seed);
        let mut moments: Vec<TimelineEntry> =
            self.timeline.iter().cloned().chain(self.probes.iter().flat_map(ProbeReport::moments)).collect();
        moments.sort_by_key(|moment| moment.at_ms);
        for moment in &moments {
            let _infallible = writeln!(text, "{:>12}  {}", seconds(moment.at_ms), moment.text);
        }
        text += "\nProbes\n";
        for probe in &self.probes {
            let latency = probe.latency_ms.map_or(String::new(), |[median, p99, max]| {
                format!("; {median:.2} ms median, {p99:.2} p99, {max:.2} max")
            });
            let again =
                probe.retransmissions.map_or(String::new(), |it| format!("; {it} segments sent again"));
            let _infallible = writeln!(
                text,
                "  {:<12} {} of {} {} arrived{latency}{again}; longest pause of the probe itself {} ms",
                probe.name, probe.arrived, probe.sent, probe.unit, probe.longest_pause_ms
            );
            let mut by_phase = BTreeMap::new();
            for trouble in &probe.troubles {
                *by_phase.entry((&trouble.phase, &trouble.cause)).or_insert(0) += trouble.count;
            }
            for ((phase, cause), count) in by_phase {
                let _infallible = writeln!(text, "  {:<12}   after {phase}: {count} {cause}", "");
            }
        }
        text += "\nExpectations\n";
        for expectation in &self.expectations {
            let verdict = if expectation.held { "held  " } else { "FAILED" };
            let _infallible = writeln!(
                text,
                "  {verdict} {} (line {}): {}",
                expectation.text, expectation.line, expectation.seen
            );
        }
        for error in &self.errors {
            let _infallible = writeln!(text, "  FAILED an error in a log: {error}");
        }
        if let Some(broken) = &self.broken {
            let _infallible = writeln!(text, "  FAILED the story ended early: {broken}");
        }
        let verdict = if self.passed { "passed" } else { "FAILED" };
        let _infallible =
            writeln!(text, "\n{verdict}: {} in {}, seed {}", self.scenario, seconds(self.took_ms), self.seed);
        text
    }
}
