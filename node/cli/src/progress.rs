//! How far a long command has come, for those who watch it.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// What is done by then needs no such line; and how often it changes after that.
const EVERY: Duration = Duration::from_millis(200);

/// A line of the error output that is written again and again, where that is a terminal. It goes when this is dropped.
pub struct Progress {
    total: usize,
    done: usize,
    /// When it was written, or the beginning; `None` where nobody watches.
    written: Option<Instant>,
    is_there: bool,
}

impl Progress {
    /// Of so many things nothing is done.
    pub fn new(total: usize) -> Self {
        let written = io::stderr().is_terminal().then(Instant::now);
        Self { total, done: 0, written, is_there: false }
    }

    /// One more is done.
    pub fn step(&mut self) {
        self.done += 1;
        if self.written.is_some_and(|written| written.elapsed() >= EVERY) {
            self.written = Some(Instant::now());
            self.is_there = true;
            write(&format!("\r{} of {}", self.done, self.total));
        }
    }

    /// Writes a line that stays.
    pub fn tell(&mut self, line: &str) {
        self.clear();
        eprintln!("{line}");
    }

    fn clear(&mut self) {
        if self.is_there {
            self.is_there = false;
            write("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whoever closed the error output does not watch.
fn write(text: &str) {
    let mut output = io::stderr().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}
