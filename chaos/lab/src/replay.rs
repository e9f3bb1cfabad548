//! Replaying an agent's event log. Needs no root, and nothing of the machine that the log is from.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use node_recorder::{Difference, Replay, Told, read};
use serde::Serialize;

/// Which part of a log to replay.
#[derive(Debug, clap::Args)]
pub struct ReplayArguments {
    /// One segment, or the directory `recorder` in an agent's state directory.
    pub path: PathBuf,
    /// Stop after this many events.
    #[arg(long, value_name = "N")]
    pub until: Option<u64>,
    /// Print this event and its commands; with --until also those between.
    #[arg(long, value_name = "N")]
    pub show: Option<u64>,
}

/// The result of a replay.
#[derive(Debug, Serialize)]
pub struct Report {
    segments: usize,
    events: u64,
    checkpoints: u64,
    /// Events that the log reports as missing.
    lost: u64,
    /// Events without a checkpoint before them.
    skipped: u64,
    /// Segments that end early, and where.
    damaged: Vec<String>,
    /// The events to show.
    shown: Vec<String>,
    /// The first difference between the replay and the record.
    difference: Option<String>,
}

impl Report {
    /// Whether the replay equals the record everywhere.
    pub fn same(&self) -> bool {
        self.difference.is_none()
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = self.shown.concat();
        let lines = [
            format!(
                "{} events in {} segments, {} checkpoints\n",
                self.events, self.segments, self.checkpoints
            ),
            self.damaged.iter().map(|damage| format!("damaged: {damage}\n")).collect(),
            if self.lost > 0 {
                format!("{} events are missing: the disk was too slow\n", self.lost)
            } else {
                String::new()
            },
            if self.skipped > 0 {
                format!("{} events could not be replayed: no checkpoint before them\n", self.skipped)
            } else {
                String::new()
            },
            match &self.difference {
                Some(difference) => format!("DIFFERENT: {difference}\n"),
                None => "the same commands as then\n".to_owned(),
            },
        ];
        text.extend(lines);
        text
    }
}

/// Replays a log.
///
/// # Errors
/// When the log cannot be read at all.
pub fn run(arguments: &ReplayArguments) -> Result<Report> {
    let files = files(&arguments.path)?;
    let mut replay = Replay::default();
    let mut report = Report {
        segments: files.len(),
        events: 0,
        checkpoints: 0,
        lost: 0,
        skipped: 0,
        damaged: Vec::new(),
        shown: Vec::new(),
        difference: None,
    };
    let until = arguments.until.unwrap_or(u64::MAX);
    'files: for path in files {
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let segment = read(&bytes).with_context(|| path.display().to_string())?;
        for entry in segment.entries {
            if replay.events >= until {
                break 'files;
            }
            if let Told::Event { number, now, event, commands } = replay.tell(entry)
                && wanted(arguments, number)
            {
                report.shown.push(shown(number, now, &event, &commands)?);
            }
        }
        if let Some(at) = segment.damaged_at {
            report.damaged.push(format!("{} ends at byte {at} of {}", path.display(), bytes.len()));
            replay.interrupt();
        }
    }
    report.events = replay.events;
    report.checkpoints = replay.checkpoints;
    report.lost = replay.lost;
    report.skipped = replay.skipped;
    report.difference = replay.difference.map(|difference| match difference {
        Difference::Commands { event, expected, found, commands } => format!(
            "event {event} led to commands with digest {expected:08x}, now {found:08x}; they are {commands:#?}"
        ),
        Difference::State { event, expected, found } => format!(
            "after event {event} the node was {expected:08x}, now {found:08x}, though all commands were the same"
        ),
    });
    if report.events == 0 && report.checkpoints == 0 {
        bail!("nothing of {} can be replayed: {}", arguments.path.display(), report.damaged.join(", "));
    }
    Ok(report)
}

fn wanted(arguments: &ReplayArguments, number: u64) -> bool {
    match (arguments.show, arguments.until) {
        (Some(from), Some(until)) => (from..=until).contains(&number),
        (Some(only), None) => number == only,
        (None, _) => false,
    }
}

fn shown(
    number: u64,
    now: impl std::fmt::Debug,
    event: &impl std::fmt::Debug,
    commands: &[impl std::fmt::Debug],
) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "event {number} at {now:?}: {event:#?}")?;
    for command in commands {
        writeln!(text, "  -> {command:#?}")?;
    }
    Ok(text)
}

/// The segments of a log, oldest first.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = fs::metadata(path).with_context(|| format!("read {}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("{} holds no segment; a log is in the folder recorder of node.state_dir", path.display());
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use node_recorder::LogError;

    use super::*;

    #[test]
    fn replay_rejects_a_file_that_is_no_log() {
        let folder = tempfile::tempdir().unwrap();
        let replay = |path: &Path| {
            let arguments = ReplayArguments { path: path.to_owned(), until: None, show: None };
            format!("{:#}", run(&arguments).expect_err("no log"))
        };
        assert!(replay(&folder.path().join("nowhere")).contains("No such file"));
        assert!(replay(folder.path()).contains("holds no segment"));
        let file = folder.path().join("1.log");
        fs::write(&file, "something else that is long enough").unwrap();
        assert!(replay(&file).contains(&LogError::Foreign.to_string()), "{}", replay(&file));
        fs::write(&file, node_recorder::header("test")).unwrap();
        assert!(replay(&file).contains("nothing of"), "{}", replay(&file));
    }
}
