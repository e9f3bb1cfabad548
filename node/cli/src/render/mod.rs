//! Answers as text for human readers. Pure: from an answer to its text.

mod datapath;
mod doctor;
mod fleet;
#[cfg(test)]
mod sample;
mod service;
mod status;
mod table;
#[cfg(test)]
mod tests;

pub use datapath::{drops, event, flows, map_dump, maps, state, state_diff};
pub use doctor::doctor;
pub use fleet::{endpoint, endpoint_added, endpoints, identities, ips, nodes};
pub use service::{Deletion, Difference, applied, deleted, differences, objects, service};
pub use status::status;

/// How text may be styled.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether to use colours: the output is a terminal, and the user has not disabled them.
    pub colour: bool,
}

/// The rating of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Ok,
    Warn,
    Fail,
    Unknown,
}

impl Style {
    /// A mark as a word of fixed width.
    pub fn mark(self, mark: Mark) -> String {
        let (word, colour) = match mark {
            Mark::Ok => ("OK  ", 32),
            Mark::Warn => ("WARN", 33),
            Mark::Fail => ("FAIL", 31),
            Mark::Unknown => ("?   ", 36),
        };
        if self.colour { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() }
    }

    /// Dimmed text.
    pub fn dim(self, text: &str) -> String {
        if self.colour { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `1d 2h`, `3m 4s`, `12s`, `340ms`: the two largest units.
pub fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1_000;
    match seconds {
        0 => format!("{milliseconds}ms"),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// `1.2 KiB`, `3.4 MiB`: bytes with a binary unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 node`, `2 nodes`.
pub fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// A point in time, in UTC, as RFC 3339 writes it.
pub fn time(unix_us: u64) -> String {
    let micros = i64::try_from(unix_us).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(timestamp) => format!("{timestamp:.3}"),
        Err(_) => format!("{unix_us}us"),
    }
}
