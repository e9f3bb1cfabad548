//! The progress of a long command, for a user at a terminal.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// The time before the first line, and between two of them: a command that ends within it needs none.
const INTERVAL: Duration = Duration::from_millis(200);

/// A line on the error output that is overwritten as work proceeds, if the error output is a terminal. Dropping this clears
/// the line.
pub struct Progress {
    total: usize,
    done: usize,
    /// When the line was written last, at first the start; `None` if the error output is no terminal.
    written: Option<Instant>,
    shown: bool,
}

impl Progress {
    /// Progress 0 of `total`.
    pub fn new(total: usize) -> Self {
        let written = io::stderr().is_terminal().then(Instant::now);
        Self { total, done: 0, written, shown: false }
    }

    /// Counts one more item as done.
    pub fn step(&mut self) {
        self.done += 1;
        if self.written.is_some_and(|written| written.elapsed() >= INTERVAL) {
            self.written = Some(Instant::now());
            self.shown = true;
            write(&format!("\r{} of {}", self.done, self.total));
        }
    }

    /// Prints a line that is not overwritten.
    pub fn print(&mut self, line: &str) {
        self.clear();
        eprintln!("{line}");
    }

    fn clear(&mut self) {
        if self.shown {
            self.shown = false;
            write("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// An error is ignored: whoever closed the error output does not read it.
fn write(text: &str) {
    let mut output = io::stderr().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}
