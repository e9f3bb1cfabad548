//! The grammar of the steps of a scenario.

use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::{duration, fault::FaultCommand};

/// The default time-out for what a fleet does by itself.
const SOON: &str = "10s";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
pub struct Line {
    #[command(subcommand)]
    pub step: Step,
}

/// One step. Endpoints are NODE/NAME.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Step {
    /// Add an endpoint.
    Endpoint {
        /// NODE/NAME.
        endpoint: String,
        /// `app=web`, or several separated by commas.
        labels: String,
    },
    /// Delete an endpoint.
    Delete {
        /// NODE/NAME.
        endpoint: String,
    },
    /// Start a probe.
    #[command(subcommand)]
    Probe(ProbeStep),
    /// Stop a probe, and take its report.
    Finish {
        /// A probe's name, several separated by commas, or `all`.
        probe: String,
    },
    /// Let time pass: `5s`, or a random time from `1s..5s` by the seed.
    Wait {
        #[arg(value_parser = duration::parse)]
        time: Duration,
    },
    /// Name this moment: a phase of the report, and for `--since`.
    Mark { name: String },
    /// Something that must hold. A run goes on if it does not, and has failed.
    #[command(subcommand)]
    Expect(Expect),
    #[command(flatten)]
    Fault(FaultCommand),
}

/// Probes, each with a name.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum ProbeStep {
    /// Echo requests.
    Ping {
        name: String,
        from: String,
        to: String,
        #[arg(long, default_value = "1ms", value_parser = duration::parse)]
        every: Duration,
    },
    /// Datagrams one way.
    Datagrams {
        name: String,
        from: String,
        to: String,
        #[arg(long, default_value = "10ms", value_parser = duration::parse)]
        every: Duration,
    },
    /// TCP streams with checked bytes both ways.
    Streams {
        name: String,
        from: String,
        to: String,
        #[arg(long, default_value_t = 20)]
        count: usize,
        #[arg(long, default_value = "2s", value_parser = duration::parse)]
        stall: Duration,
    },
    /// New TCP connections.
    Connections {
        name: String,
        from: String,
        to: String,
        #[arg(long, default_value = "50ms", value_parser = duration::parse)]
        every: Duration,
    },
}

impl ProbeStep {
    /// The probe's name and its two endpoints.
    pub fn parties(&self) -> (&str, &str, &str) {
        match self {
            Self::Ping { name, from, to, .. }
            | Self::Datagrams { name, from, to, .. }
            | Self::Streams { name, from, to, .. }
            | Self::Connections { name, from, to, .. } => (name, from, to),
        }
    }
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Expect {
    /// A probe lost nothing: no packet, no byte, no connection.
    Clean {
        /// A probe's name, several separated by commas, or `all`.
        probe: String,
        /// Only what was sent after this mark.
        #[arg(long)]
        since: Option<String>,
        /// Only what was sent before this mark.
        #[arg(long)]
        until: Option<String>,
        /// In addition, no stream was silent for longer than its limit.
        #[arg(long)]
        steady: bool,
    },
    /// A probe lost something: the fault had an effect.
    Losses {
        /// A probe's name.
        probe: String,
        /// Only what was sent after this mark.
        #[arg(long)]
        since: Option<String>,
    },
    /// One endpoint gets replies from another.
    Reaches {
        from: String,
        to: String,
        #[arg(long, default_value = SOON, value_parser = duration::parse)]
        within: Duration,
    },
    /// Every kernel has exactly the existing endpoints, and nothing to repair; no block has two owners.
    Converged {
        #[arg(long, default_value = "5s", value_parser = duration::parse)]
        within: Duration,
        /// The time counts from this mark.
        #[arg(long)]
        since: Option<String>,
    },
    /// etcd has exactly the existing endpoints, and each agent knows that; it has each node's blocks, and no two
    /// overlap.
    Recorded {
        #[arg(long, default_value = "30s", value_parser = duration::parse)]
        within: Duration,
    },
    /// No entry of an address left a kernel map, except those of deleted endpoints and rebooted nodes.
    Kept {
        /// Only what left after this mark.
        #[arg(long)]
        since: Option<String>,
    },
    /// An agent is ready.
    Ready {
        /// Nodes.
        nodes: String,
        #[arg(long, default_value = "30s", value_parser = duration::parse)]
        within: Duration,
    },
    /// `warren status` contains a text.
    Status {
        /// Nodes.
        nodes: String,
        /// The text.
        text: String,
        /// The text must be absent.
        #[arg(long)]
        not: bool,
        #[arg(long, default_value = SOON, value_parser = duration::parse)]
        within: Duration,
    },
}

impl Expect {
    /// The step's time-out, if it has one.
    pub fn limit(&mut self) -> Option<&mut Duration> {
        match self {
            Self::Reaches { within, .. }
            | Self::Converged { within, .. }
            | Self::Recorded { within }
            | Self::Ready { within, .. }
            | Self::Status { within, .. } => Some(within),
            Self::Clean { .. } | Self::Losses { .. } | Self::Kept { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn cli_grammar_is_sound() {
        Line::command().debug_assert();
    }
}
