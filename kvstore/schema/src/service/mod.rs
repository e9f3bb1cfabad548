//! What a service is to be, as its author says it: the `spec` of a manifest, and the heart of its record.
//!
//! A field that this agent does not know refuses the whole: a service that is served without its source ranges, say,
//! would be open to everybody. Such a record is rejected alone, and what was known of the service before stays.

mod record;
mod rules;

use std::{fmt, net::IpAddr};

use identity::Selector;
use serde::{Deserialize, Deserializer, Serialize, de};

pub use record::{ServiceRecord, VipRecord};
pub use rules::{MAX_FIXED_BACKENDS, MAX_SERVICE_PORTS, MAX_WEIGHT, SpecError};

/// A service as wanted. [`ServiceSpec::normalised`] fills in what was left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// The address that workloads and nodes use.
    #[serde(default)]
    pub virtual_ip: VirtualIp,
    /// What it offers; at least one.
    pub ports: Vec<ServicePort>,
    /// Its backends are the fleet's endpoints with these labels (those that count for identities).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Or these addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<FixedBackend>,
    /// How a flow's backend is chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Addresses that clients outside the fleet use.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::external_ips")]
    pub external_ips: NotYet,
    /// One client, one backend.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::affinity")]
    pub affinity: NotYet,
    /// Which backends clients outside the fleet get.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::traffic_policy")]
    pub traffic_policy: NotYet,
    /// Who may use it.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::source_ranges")]
    pub source_ranges: NotYet,
    /// How answers reach clients outside the fleet.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::mode")]
    pub mode: NotYet,
    /// How backends are asked whether they are well.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::health_check")]
    pub health_check: NotYet,
    /// Which backends are preferred.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::topology")]
    pub topology: NotYet,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// What people call it; needed when there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it carries.
    #[serde(default)]
    pub protocol: ServiceProtocol,
    /// The port that clients use.
    pub port: u16,
    /// The backends' port; the same if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// A port of every node's own addresses.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::node_port")]
    pub node_port: NotYet,
    /// A port of the nodes that have backends.
    #[serde(default, skip_serializing, deserialize_with = "not_yet::host_port")]
    pub host_port: NotYet,
}

impl ServicePort {
    /// The backends' port.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// A backend that is not found by labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FixedBackend {
    /// Its address.
    pub address: IpAddr,
    /// Its port, where it is not the `targetPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share of new flows, beside the others'.
    #[serde(default = "one")]
    pub weight: u16,
}

const fn one() -> u16 {
    1
}

/// What a service's port carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceProtocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
}

impl fmt::Display for ServiceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

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
    /// A free one of the fleet's service pools, kept for as long as the service is there.
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

/// In place of what nothing carries out yet. It can be absent, and nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NotYet;

/// A refusal for each field that is not there yet: nobody shall rely on what is not carried out.
mod not_yet {
    use super::{Deserializer, NotYet, de};

    macro_rules! refuse {
        ($($field:ident $name:literal $instead:literal;)+) => {$(
            pub fn $field<'de, D: Deserializer<'de>>(_: D) -> Result<NotYet, D::Error> {
                Err(de::Error::custom(concat!("not there yet: ", $name, " (", $instead, "); leave it out")))
            }
        )+};
    }

    refuse! {
        external_ips "externalIps" "workloads and nodes reach a service by its virtual IP";
        node_port "nodePort" "workloads and nodes reach a service by its virtual IP";
        host_port "hostPort" "workloads and nodes reach a service by its virtual IP";
        affinity "affinity" "each flow chooses its backend for itself";
        traffic_policy "trafficPolicy" "every flow may get any backend of the fleet";
        source_ranges "sourceRanges" "everybody in the fleet may use a service";
        mode "mode" "answers go back the way that the flow came";
        health_check "healthCheck" "every endpoint that is attached counts as well";
        topology "topology" "every flow may get any backend of the fleet";
    }
}
