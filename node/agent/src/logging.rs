//! Messages on standard error: fields, not sentences; as text or as one JSON object a line.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogFormat, LogLevel, LogSection};

/// Foreign crates that log much below the level of warnings.
const QUIET: [&str; 9] =
    ["aya", "aya_obj", "h2", "hyper", "hyper_util", "tonic", "tower", "chitchat", "rustls"];

/// Installs the subscriber for the process, once.
pub fn init(section: LogSection) {
    let level = match section.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let quiet = level.min(LevelFilter::WARN);
    let filter = Targets::new().with_default(level).with_targets(QUIET.map(|target| (target, quiet)));
    let registry = tracing_subscriber::registry().with(filter);
    match section.format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
            registry.with(layer).init();
        }
        LogFormat::Json => {
            let layer =
                tracing_subscriber::fmt::layer().with_writer(std::io::stderr).json().flatten_event(true);
            registry.with(layer).init();
        }
    }
}
