//! What a probe has observed: counts, times, and each trouble with its place on the time line.

use std::{
    fmt,
    time::{Duration, Instant},
};

use serde::Serialize;

/// Troubles of one cause that are this close are merged into one with a count.
const MERGE: Duration = Duration::from_millis(250);

/// The kind of a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Sent, and never received.
    Lost,
    /// Answered after the probe's limit.
    Late,
    /// Received more than once.
    Duplicate,
    /// The sender's own kernel refused to send it.
    Unsent,
    /// Rejected by the receiver or by a router.
    Refused,
    /// No answer within the probe's limit.
    TimedOut,
    /// The connection was reset.
    Reset,
    /// The connection was closed early.
    Closed,
    /// Nothing arrived for longer than the probe's limit, then the stream went on.
    Stalled,
    /// Other bytes arrived than were sent.
    Corrupt,
    /// Not everything that was sent had arrived when the probe ended.
    Unfinished,
}

impl Cause {
    /// Whether something did not arrive, or not as it was sent. Late and stalled packets have arrived.
    pub fn is_loss(self) -> bool {
        !matches!(self, Self::Late | Self::Stalled | Self::Duplicate)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "lost",
            Self::Late => "late",
            Self::Duplicate => "seen twice",
            Self::Unsent => "not sent",
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Reset => "reset",
            Self::Closed => "closed early",
            Self::Stalled => "stalled",
            Self::Corrupt => "corrupt",
            Self::Unfinished => "unfinished",
        })
    }
}

/// One or more failures of one cause, close together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The cause.
    pub cause: Cause,
    /// When the first was sent, or the stream last worked.
    pub begin: Instant,
    /// When the last was sent, or the stream worked again.
    pub end: Instant,
    /// How many.
    pub count: u64,
    /// The first of them in words: its number or error.
    pub first: String,
}

/// Median, 99th percentile and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Half of the values are at most this.
    pub median: Duration,
    /// 99 of 100 values are at most this.
    pub p99: Duration,
    /// The maximum.
    pub max: Duration,
}

/// What a probe has observed since its start.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What is counted: `pings`, `datagrams`, `bytes`, `connections`.
    pub unit: &'static str,
    /// How many were sent or begun.
    pub sent: u64,
    /// How many arrived or were answered in order.
    pub arrived: u64,
    /// Times from sending to answer or arrival; none for streams.
    pub latency: Option<Spread>,
    /// The longest time in which the probe was ready to run but was not scheduled: it says nothing about the network.
    pub longest_pause: Duration,
    /// Segments that TCP retransmitted (streams): for a loss that TCP repaired, or a late acknowledgement.
    pub retransmissions: Option<u64>,
    /// What went wrong, by time.
    pub troubles: Vec<Trouble>,
}

impl Report {
    /// The troubles that are losses.
    pub fn losses(&self) -> impl Iterator<Item = &Trouble> {
        self.troubles.iter().filter(|trouble| trouble.cause.is_loss())
    }

    /// How many were lost in any way.
    pub fn lost(&self) -> u64 {
        self.losses().map(|trouble| trouble.count).sum()
    }

    /// The troubles in words, with times relative to `origin`.
    pub fn describe(&self, origin: Instant) -> Vec<String> {
        self.troubles
            .iter()
            .map(|trouble| {
                let at = |moment: Instant| moment.saturating_duration_since(origin).as_secs_f64();
                format!(
                    "{:.3} s to {:.3} s: {} {} ({})",
                    at(trouble.begin),
                    at(trouble.end),
                    trouble.count,
                    trouble.cause,
                    trouble.first
                )
            })
            .collect()
    }
}

/// What a probe records while it runs.
#[derive(Debug, Default)]
pub(super) struct Log {
    report: Report,
    latencies_us: Vec<u32>,
}

impl Log {
    pub(super) fn new(unit: &'static str) -> Self {
        Self { report: Report { unit, ..Report::default() }, latencies_us: Vec::new() }
    }

    pub(super) fn sent(&mut self, count: u64) {
        self.report.sent += count;
    }

    pub(super) fn arrived(&mut self, count: u64) {
        self.report.arrived += count;
    }

    pub(super) fn latency(&mut self, time: Duration) {
        self.latencies_us.push(time.as_micros().try_into().unwrap_or(u32::MAX));
    }

    pub(super) fn pause(&mut self, time: Duration) {
        self.report.longest_pause = self.report.longest_pause.max(time);
    }

    pub(super) fn retransmissions(&mut self, count: u64) {
        *self.report.retransmissions.get_or_insert(0) += count;
    }

    pub(super) fn trouble(
        &mut self,
        cause: Cause,
        begin: Instant,
        end: Instant,
        first: impl FnOnce() -> String,
    ) {
        let close = |trouble: &&mut Trouble| {
            trouble.cause == cause && begin <= trouble.end + MERGE && trouble.begin <= end + MERGE
        };
        match self.report.troubles.iter_mut().rev().find(close) {
            Some(trouble) => {
                trouble.begin = trouble.begin.min(begin);
                trouble.end = trouble.end.max(end);
                trouble.count += 1;
            }
            None => self.report.troubles.push(Trouble { cause, begin, end, count: 1, first: first() }),
        }
    }

    pub(super) fn report(&self) -> Report {
        let mut times = self.latencies_us.clone();
        times.sort_unstable();
        let at = |share: f64| {
            let index = (times.len().saturating_sub(1) as f64 * share).round() as usize;
            Duration::from_micros(u64::from(times[index]))
        };
        let mut report = self.report.clone();
        report.latency = (!times.is_empty()).then(|| Spread { median: at(0.5), p99: at(0.99), max: at(1.0) });
        report.troubles.sort_by_key(|trouble| trouble.begin);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_merges_close_gaps_of_one_cause() {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let mut log = Log::new("pings");
        for (cause, begin, end) in [
            (Cause::Lost, 1_000, 1_000),
            (Cause::Lost, 1_001, 1_001),
            (Cause::Late, 1_001, 1_100),
            (Cause::Lost, 1_240, 1_250),
            (Cause::Lost, 2_000, 2_000),
        ] {
            log.trouble(cause, at(begin), at(end), || format!("number {begin}"));
        }
        let report = log.report();
        assert_eq!(
            report.describe(origin),
            [
                "1.000 s to 1.250 s: 3 lost (number 1000)",
                "1.001 s to 1.100 s: 1 late (number 1001)",
                "2.000 s to 2.000 s: 1 lost (number 2000)",
            ]
        );
        assert_eq!(report.lost(), 4);
    }

    #[test]
    fn report_spreads_times() {
        let mut log = Log::new("pings");
        assert_eq!(log.report().latency, None);
        (1..=100).for_each(|ms| log.latency(Duration::from_millis(ms)));
        let spread = log.report().latency.unwrap();
        let ms = [spread.median, spread.p99, spread.max].map(|time| time.as_millis());
        assert_eq!(ms, [51, 99, 100]);
    }
}
