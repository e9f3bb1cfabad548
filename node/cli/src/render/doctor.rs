//! `warren doctor`: one line per finding, followed by the remedy.

use node_doctor::{Counts, Report, Verdict};

use super::{Mark, Style, count};

/// The column of observations: after a mark, a blank, the longest name of a check and a blank.
const INDENT: usize = 22;

pub fn doctor(report: &Report, style: Style) -> String {
    let mut text = String::new();
    for (index, finding) in report.findings.iter().enumerate() {
        text += &format!("{} {:<16} {}\n", style.mark(mark(finding.verdict)), finding.check, finding.seen);
        // A remedy of several consecutive findings is shown once, after the last of them.
        let next = report.findings.get(index + 1);
        if let Some(remedy) = &finding.remedy
            && next.is_none_or(|next| next.remedy != finding.remedy)
        {
            text += &format!("{:INDENT$}do: {remedy}\n", "");
        }
    }
    text + &summary(report.counts)
}

const fn mark(verdict: Verdict) -> Mark {
    match verdict {
        Verdict::Ok => Mark::Ok,
        Verdict::Warn => Mark::Warn,
        Verdict::Fail => Mark::Fail,
        Verdict::Unknown => Mark::Unknown,
    }
}

fn summary(counts: Counts) -> String {
    let Counts { ok, warn, fail, unknown } = counts;
    let [fails, warnings] =
        [(fail, "failure"), (warn, "warning")].map(|(number, thing)| count(number as u64, thing));
    format!("{fails}, {warnings}, {unknown} unknown, {ok} ok\n")
}
