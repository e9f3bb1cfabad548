//! Reading and showing the value of a setting, from the file, a flag or the environment.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use datapath_plan::{HostRouting, Mode};
use identity::{FleetName, Labels, NodeName};
use ipnetwork::IpNetwork;
use node_core::NativeRoutes;
use toml::Value as Toml;

/// An unparsed value.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// From a flag or the environment: the setting's type decides how it is read.
    Text(String),
    /// From the file, with its TOML type.
    Toml(Toml),
}

/// A type of settings.
pub trait Value: Sized {
    /// Reads a value.
    ///
    /// # Errors
    /// What is expected instead.
    fn read(input: &Input) -> Result<Self, String>;

    /// The value as TOML; `None` where it is not set.
    fn show(&self) -> Option<Toml>;

    /// An example, for the sample file where the value is not set.
    fn example() -> &'static str {
        "\"\""
    }
}

fn text(input: &Input) -> Result<&str, String> {
    match input {
        Input::Text(text) | Input::Toml(Toml::String(text)) => Ok(text),
        Input::Toml(other) => Err(format!("expected a text in quotes, found {}", other.type_str())),
    }
}

fn parsed<T: std::str::FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|error: T::Err| error.to_string())
}

/// Types that are written as a text.
macro_rules! text_values {
    ($($type:ty: $example:literal;)+) => {$(
        impl Value for $type {
            fn read(input: &Input) -> Result<Self, String> {
                let text = text(input)?;
                parsed(text).map_err(|error| {
                    if error.contains(text) { error } else { format!("{text:?} is not valid: {error}") }
                })
            }
            fn show(&self) -> Option<Toml> {
                Some(Toml::String(self.to_string()))
            }
            fn example() -> &'static str {
                $example
            }
        }
    )+};
}

text_values! {
    String: "\"\"";
    NodeName: "\"node-1\"";
    FleetName: "\"default\"";
    IpAddr: "\"192.0.2.1\"";
    SocketAddr: "\"127.0.0.1:9964\"";
    PortRange: "\"61000-65535\"";
}

impl Value for PathBuf {
    fn read(input: &Input) -> Result<Self, String> {
        match text(input)? {
            path if path.starts_with('/') => Ok(path.into()),
            path => Err(format!("{path:?} is not an absolute path")),
        }
    }
    fn show(&self) -> Option<Toml> {
        Some(Toml::String(self.display().to_string()))
    }
    fn example() -> &'static str {
        "\"/etc/warren/...\""
    }
}

macro_rules! number_values {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn read(input: &Input) -> Result<Self, String> {
                let range = || format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX);
                match input {
                    Input::Toml(Toml::Integer(number)) => {
                        <$type>::try_from(*number).map_err(|_| format!("{number} is out of range: use {}", range()))
                    }
                    Input::Text(text) => {
                        text.trim().parse().map_err(|_| format!("{text:?} is not valid: use {}", range()))
                    }
                    Input::Toml(other) => Err(format!("expected {}, found {}", range(), other.type_str())),
                }
            }
            fn show(&self) -> Option<Toml> {
                Some(Toml::Integer((*self).into()))
            }
        }
    )+};
}

number_values!(u8, u16, u32);

/// Units of durations in milliseconds, the longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Value for Duration {
    fn read(input: &Input) -> Result<Self, String> {
        let text = text(input)?;
        let wrong = || format!("{text:?} is no duration: use a number with ms, s, m, h or d, as \"30s\"");
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(*factor).map(Duration::from_millis).ok_or_else(wrong)
    }
    fn show(&self) -> Option<Toml> {
        let ms = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        let (unit, factor) = UNITS.iter().find(|(_, factor)| ms % factor == 0).expect("1 divides everything");
        Some(Toml::String(format!("{}{unit}", ms / factor)))
    }
}

impl Value for bool {
    fn read(input: &Input) -> Result<Self, String> {
        match input {
            Input::Toml(Toml::Boolean(value)) => Ok(*value),
            Input::Text(text) => {
                text.trim().parse().map_err(|_| format!("{text:?} is neither true nor false"))
            }
            Input::Toml(other) => Err(format!("expected true or false, found {}", other.type_str())),
        }
    }
    fn show(&self) -> Option<Toml> {
        Some(Toml::Boolean(*self))
    }
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl std::str::FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of ports: use first-last, as 61000-65535");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first == 0 || range.first > range.last { Err(wrong()) } else { Ok(range) }
    }
}

impl Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Items of a list: an array in the file, separated by commas elsewhere.
fn list(input: &Input) -> Result<Vec<String>, String> {
    match input {
        Input::Text(text) => {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        Input::Toml(Toml::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| "expected texts in quotes in the list".to_owned())
            })
            .collect(),
        Input::Toml(other) => Err(format!("expected a list of texts, found {}", other.type_str())),
    }
}

impl Value for Vec<String> {
    fn read(input: &Input) -> Result<Self, String> {
        list(input)
    }
    fn show(&self) -> Option<Toml> {
        Some(Toml::Array(self.iter().cloned().map(Toml::String).collect()))
    }
}

impl Value for Vec<IpNetwork> {
    fn read(input: &Input) -> Result<Self, String> {
        list(input)?
            .iter()
            .map(|item| match item.split_once('/') {
                Some(_) => item.parse().map_err(|_| format!("{item:?} is no CIDR")),
                None => Err(format!("{item:?} is no CIDR: it needs a prefix length, as 10.42.0.0/16")),
            })
            .collect()
    }
    fn show(&self) -> Option<Toml> {
        Some(Toml::Array(self.iter().map(|pool| Toml::String(pool.to_string())).collect()))
    }
    fn example() -> &'static str {
        "[\"10.201.0.0/16\"]"
    }
}

impl Value for Labels {
    fn read(input: &Input) -> Result<Self, String> {
        let labels = match input {
            Input::Toml(Toml::Table(table)) => {
                let map = table
                    .iter()
                    .map(|(key, value)| match value.as_str() {
                        Some(value) => Ok((key.clone(), value.to_owned())),
                        None => Err(format!("expected a text in quotes for label {key}")),
                    })
                    .collect::<Result<BTreeMap<_, _>, _>>()?;
                Labels::new(map)
            }
            Input::Toml(other) => {
                return Err(format!("expected a table, as {{ rack = \"a\" }}, found {}", other.type_str()));
            }
            Input::Text(text) => text.parse(),
        };
        labels.map_err(|error| error.to_string())
    }
    fn show(&self) -> Option<Toml> {
        let text = |(key, value): (&str, &str)| (key.to_owned(), Toml::String(value.to_owned()));
        Some(Toml::Table(self.iter().map(text).collect()))
    }
}

impl<T: Value> Value for Option<T> {
    fn read(input: &Input) -> Result<Self, String> {
        T::read(input).map(Some)
    }
    fn show(&self) -> Option<Toml> {
        self.as_ref().and_then(Value::show)
    }
    fn example() -> &'static str {
        T::example()
    }
}

/// Reads and shows an enum whose variants are words.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal,)+ }) => {
        impl Value for $type {
            fn read(input: &Input) -> Result<Self, String> {
                match text(input)? {
                    $($word => Ok(Self::$variant),)+
                    other => Err(format!("{other:?} is none of {}", [$(concat!('"', $word, '"')),+].join(", "))),
                }
            }
            fn show(&self) -> Option<Toml> {
                let word = match self { $(Self::$variant => $word,)+ };
                Some(Toml::String(word.to_owned()))
            }
        }
    };
}

words! { Mode { Tunnel = "tunnel", Native = "native", } }
words! { HostRouting { Bpf = "bpf", Legacy = "legacy", } }
words! { NativeRoutes { Direct = "direct", External = "external", } }

/// Defines an enum whose variants are words.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The word.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        words! { $name { $($variant = $word,)+ } }
    };
}

choice! {
    /// Where the fleet's records are.
    StoreKind {
        /// In etcd.
        Etcd = "etcd",
        /// In the agent's own memory: a fleet of one node, without etcd and gossip.
        Memory = "memory",
    }
}

choice! {
    /// The mode of the XDP program.
    XdpKind {
        /// Not attached.
        Off = "off",
        /// Generic XDP, in the kernel.
        Generic = "generic",
        /// Native XDP, in the driver.
        Native = "native",
    }
}

choice! {
    /// The log level.
    LogLevel {
        /// Broken.
        Error = "error",
        /// Unusual but working.
        Warn = "warn",
        /// State changes.
        Info = "info",
        /// Small changes.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// The log format.
    LogFormat {
        /// Text for people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_read_and_shown() {
        for (text, ms) in
            [("200ms", 200), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("2d", 172_800_000)]
        {
            let duration = Duration::read(&Input::Text(text.to_owned())).unwrap();
            assert_eq!(duration.as_millis(), ms);
            assert_eq!(duration.show(), Some(Toml::String(text.to_owned())));
        }
        for text in ["", "5", "s", "-1s", "1.5s", "99999999999999999d"] {
            assert!(
                Duration::read(&Input::Text(text.to_owned())).unwrap_err().contains("no duration"),
                "{text}"
            );
        }
    }

    #[test]
    fn number_in_the_file_must_have_the_right_type() {
        let check = |result: Result<u16, String>, expected: &str| assert_eq!(result.unwrap_err(), expected);
        check(
            u16::read(&Input::Toml(Toml::Integer(70_000))),
            "70000 is out of range: use a whole number from 0 to 65535",
        );
        check(
            u16::read(&Input::Toml(Toml::String("1".to_owned()))),
            "expected a whole number from 0 to 65535, found string",
        );
        check(
            u16::read(&Input::Text("x".to_owned())),
            "\"x\" is not valid: use a whole number from 0 to 65535",
        );
        assert_eq!(u16::read(&Input::Text("80".to_owned())), Ok(80));
    }
}
