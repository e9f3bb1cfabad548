//! The choices that a spec leaves to its author, each with what it is when nothing is said.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How a flow's backend is chosen. Nodes agree on it either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// By consistent hashing: few flows move when a backend comes or goes.
    #[default]
    Maglev,
    /// Evenly.
    Random,
}

/// A service's own address. Text form: `auto`, or the address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VirtualIp {
    /// A free address of the fleet's service pools, kept for as long as the service exists.
    #[default]
    Auto,
    /// This one.
    Address(IpAddr),
}

impl TryFrom<String> for VirtualIp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            other => other
                .parse()
                .map(Self::Address)
                .map_err(|_| format!("virtualIp {other:?} is not valid: use auto, or an address")),
        }
    }
}

impl From<VirtualIp> for String {
    fn from(wanted: VirtualIp) -> Self {
        match wanted {
            VirtualIp::Auto => "auto".to_owned(),
            VirtualIp::Address(address) => address.to_string(),
        }
    }
}

/// A port of every node's own addresses. Written as `auto`, or the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodePort {
    /// A free node port, kept for as long as the service has the port.
    Auto,
    /// This one.
    Number(u16),
}

impl Serialize for NodePort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Number(number) => serializer.serialize_u16(*number),
        }
    }
}

impl<'de> Deserialize<'de> for NodePort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = NodePort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, or a number")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<NodePort, E> {
                let number = u16::try_from(number);
                number.map(NodePort::Number).map_err(|_| E::custom("not a whole number from 0 to 65535"))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<NodePort, E> {
                self.visit_u64(u64::try_from(number).unwrap_or(u64::MAX))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<NodePort, E> {
                match text.parse() {
                    Ok(number) => Ok(NodePort::Number(number)),
                    Err(_) if text == "auto" => Ok(NodePort::Auto),
                    Err(_) => {
                        Err(E::custom(format!("nodePort {text:?} is not valid: use auto, or a number")))
                    }
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Whose address a backend sees when somebody outside the fleet comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The client's where the backend is on the node that it came to, else that node's: answers go back that way.
    #[default]
    Snat,
    /// Always the client's: the backend's node answers it directly.
    Dsr,
}

/// Which backends clients outside the fleet get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrafficPolicy {
    /// Any of the fleet.
    #[default]
    Fleet,
    /// Only backends of the node that the client's packets came to.
    Local,
}

/// Which backends are preferred, as long as there are such: seen from the node that the client is on, or came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// All alike.
    #[default]
    Any,
    /// Prefer backends on nodes with the same label `zone`.
    Zone,
    /// Prefer backends on the same node, then those of the same zone.
    Node,
}

/// Session affinity: a client keeps its backend while the backend takes new flows and the client is not silent for too
/// long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Affinity {
    /// What makes a client.
    #[serde(default)]
    pub by: AffinityBy,
    /// How long the client may be silent.
    #[serde(default = "Affinity::default_seconds")]
    pub timeout_seconds: u32,
}

impl Affinity {
    /// Three hours, as in Kubernetes: longer than people leave a page open and come back.
    const fn default_seconds() -> u32 {
        10_800
    }
}

/// What makes a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AffinityBy {
    /// Its address.
    #[default]
    ClientIp,
}
