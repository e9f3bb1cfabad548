//! Health checks of a service's backends.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ServicePort, ServiceProtocol};

/// Asking more often costs more than it tells; more seldom, a backend is dead for minutes before anybody hears.
const INTERVALS: (Span, Span) = (Span::ms(200), Span::ms(10 * 60_000));
/// A machine of one's own answers within a millisecond; a tenth of that is no sign of anything.
const SHORTEST_TIMEOUT: Span = Span::ms(10);
/// The most answers in a row that a change of mind may take.
const MAX_THRESHOLD: u16 = 100;
/// The longest path: what every HTTP server takes.
const MAX_PATH_BYTES: usize = 1_024;
/// The longest name of a host (RFC 1035), with a port behind it.
const MAX_HOST_BYTES: usize = 253 + 6;

/// A check of each backend, over and over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct HealthCheck {
    /// The question.
    pub probe: Probe,
    /// The port; by default the backend's own.
    pub port: Option<u16>,
    /// From one answer to the next question.
    pub interval: Span,
    /// How long an answer may take.
    pub timeout: Span,
    /// A backend that was well is not any more after so many bad answers in a row.
    pub unhealthy_threshold: u16,
    /// And is well again after so many good ones.
    pub healthy_threshold: u16,
}

/// What a backend is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Probe {
    /// To take a TCP connection.
    Tcp,
    /// For a page, by HTTP/1.1: a status of 200 to 399 is a good answer.
    Http {
        /// The page.
        path: String,
        /// The `Host` header; by default the backend's address.
        host: Option<String>,
    },
}

impl HealthCheck {
    /// Asks so, with everything else as it is if nothing is said.
    pub const fn new(probe: Probe) -> Self {
        Self {
            probe,
            port: None,
            interval: Span::ms(2_000),
            timeout: Span::ms(1_000),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }

    /// Adds all mistakes, each with its place.
    pub(super) fn check(&self, ports: &[ServicePort], mistakes: &mut Vec<String>) {
        let mut wrong = |text: String| mistakes.push(format!("spec.healthCheck{text}"));
        if self.port == Some(0) {
            wrong(".port: 0 is none; use 1 to 65535".to_owned());
        }
        let deaf = ports.iter().position(|port| port.protocol != ServiceProtocol::Tcp);
        if let (None, Some(index)) = (self.port, deaf) {
            wrong(format!(
                ".port: needed, since spec.ports[{index}] is {} and checks are made over TCP",
                ports[index].protocol
            ));
        }
        let (shortest, longest) = INTERVALS;
        if !(shortest..=longest).contains(&self.interval) {
            wrong(format!(".interval: {} is out of range; use {shortest} to {longest}", self.interval));
        } else if !(SHORTEST_TIMEOUT..=self.interval).contains(&self.timeout) {
            wrong(format!(
                ".timeout: {} is out of range; use {SHORTEST_TIMEOUT} to the interval, {}",
                self.timeout, self.interval
            ));
        }
        for (name, threshold) in
            [("unhealthy", self.unhealthy_threshold), ("healthy", self.healthy_threshold)]
        {
            if !(1..=MAX_THRESHOLD).contains(&threshold) {
                wrong(format!(".{name}Threshold: {threshold} is out of range; use 1 to {MAX_THRESHOLD}"));
            }
        }
        if let Probe::Http { path, host } = &self.probe {
            if !path.starts_with('/')
                || path.len() > MAX_PATH_BYTES
                || !path.bytes().all(|b| b.is_ascii_graphic())
            {
                wrong(format!(
                    ".http.path: {path:?} is no path of a page: begin with /, percent-encode what is not ASCII, and use at most \
                     {MAX_PATH_BYTES} bytes"
                ));
            }
            let is_host = |host: &str| {
                let byte = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
                (1..=MAX_HOST_BYTES).contains(&host.len()) && host.bytes().all(byte)
            };
            if let Some(host) = host.as_ref().filter(|host| !is_host(host)) {
                wrong(format!(".http.host: {host:?} is no name of a host"));
            }
        }
    }
}

/// The form in manifests: absent fields are as in [`HealthCheck::new`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<TcpText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<HttpText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unhealthy_threshold: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    healthy_threshold: Option<u16>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpText {}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpText {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

impl TryFrom<Text> for HealthCheck {
    type Error = String;

    fn try_from(text: Text) -> Result<Self, String> {
        let probe = match (text.tcp, text.http) {
            (_, None) => Probe::Tcp,
            (None, Some(http)) => Probe::Http { path: http.path, host: http.host },
            (Some(_), Some(_)) => return Err("healthCheck has tcp and http; use one of them".to_owned()),
        };
        let usual = Self::new(probe);
        let interval = text.interval.unwrap_or(usual.interval);
        Ok(Self {
            port: text.port,
            interval,
            timeout: text.timeout.unwrap_or(usual.timeout.min(interval)),
            unhealthy_threshold: text.unhealthy_threshold.unwrap_or(usual.unhealthy_threshold),
            healthy_threshold: text.healthy_threshold.unwrap_or(usual.healthy_threshold),
            ..usual
        })
    }
}

impl From<HealthCheck> for Text {
    fn from(check: HealthCheck) -> Self {
        let (tcp, http) = match check.probe {
            Probe::Tcp => (Some(TcpText {}), None),
            Probe::Http { path, host } => (None, Some(HttpText { path, host })),
        };
        Self {
            tcp,
            http,
            port: check.port,
            interval: Some(check.interval),
            timeout: Some(check.timeout),
            unhealthy_threshold: Some(check.unhealthy_threshold),
            healthy_threshold: Some(check.healthy_threshold),
        }
    }
}

/// A span of time. Text form: `500ms`, `2s`, `5m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(Duration);

/// The longest first, in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Span {
    /// So many milliseconds.
    pub const fn ms(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }

    /// The same as a duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_millis();
        let whole = |(_, factor): &&(&str, u64)| ms > 0 && ms.is_multiple_of(u128::from(*factor));
        let (unit, factor) = UNITS.iter().find(whole).unwrap_or(&("ms", 1));
        write!(f, "{}{unit}", ms / u128::from(*factor))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
        let ms = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(*factor));
        ms.map(Self::ms).ok_or_else(|| {
            format!("{text:?} is no span of time: use a whole number with ms, s, m or h, as \"2s\"")
        })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}
