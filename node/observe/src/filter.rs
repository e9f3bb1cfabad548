//! Filters on events, used by the agent, on the wire, and on the command line.

use std::{fmt, net::IpAddr, str::FromStr};

use identity::{EndpointName, Identity};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{EventKind, FlowEvent, Party, Protocol, Verdict};

/// A filter on one side of a flow: `10.1.2.3`, `10.1.0.0/16`, `identity:300`, `host` (a reserved identity's name),
/// `app=web` (a label), `web-1` or `endpoint:web-1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PartyFilter {
    /// By address or prefix.
    Network(IpNetwork),
    /// By identity.
    Identity(Identity),
    /// By one label of the identity.
    Label {
        /// The label's key.
        key: String,
        /// The value that the label must have.
        value: String,
    },
    /// By the endpoint's name.
    Endpoint(EndpointName),
}

/// The text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a filter: use an address, a prefix, identity:NUMBER, a reserved identity's name, KEY=VALUE or an endpoint's name"
)]
pub struct FilterError(pub String);

impl FromStr for PartyFilter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let wrong = || FilterError(text.to_owned());
        if let Some(number) = text.strip_prefix("identity:") {
            let identity = number.parse().ok().and_then(|number| Identity::new(number).ok());
            return identity.map(Self::Identity).ok_or_else(wrong);
        }
        if let Some(name) = text.strip_prefix("endpoint:") {
            return EndpointName::new(name).map(Self::Endpoint).map_err(|_| wrong());
        }
        if let Some((key, value)) = text.split_once('=') {
            return if key.is_empty() {
                Err(wrong())
            } else {
                Ok(Self::Label { key: key.to_owned(), value: value.to_owned() })
            };
        }
        if let Ok(network) = text.parse::<IpNetwork>() {
            return Ok(Self::Network(network));
        }
        let reserved = (0..256).filter_map(|number| Identity::new(number).ok());
        if let Some(identity) = reserved.into_iter().find(|id| id.reserved_name() == Some(text)) {
            return Ok(Self::Identity(identity));
        }
        EndpointName::new(text).map(Self::Endpoint).map_err(|_| wrong())
    }
}

impl fmt::Display for PartyFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "{network}"),
            Self::Identity(identity) => write!(f, "identity:{identity}"),
            Self::Label { key, value } => write!(f, "{key}={value}"),
            Self::Endpoint(name) => write!(f, "endpoint:{name}"),
        }
    }
}

impl TryFrom<String> for PartyFilter {
    type Error = FilterError;
    fn try_from(text: String) -> Result<Self, FilterError> {
        text.parse()
    }
}

impl From<PartyFilter> for String {
    fn from(filter: PartyFilter) -> Self {
        filter.to_string()
    }
}

impl PartyFilter {
    fn matches(&self, party: &Party) -> bool {
        match self {
            Self::Network(network) => party.address.is_some_and(|address: IpAddr| network.contains(address)),
            Self::Identity(identity) => party.identity == *identity,
            Self::Label { key, value } => party.labels.get(key) == Some(value),
            Self::Endpoint(name) => party.endpoint.as_ref() == Some(name),
        }
    }
}

/// A filter on events: all conditions that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventFilter {
    /// The sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PartyFilter>,
    /// The receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<PartyFilter>,
    /// Forwarded or dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// New flows, ended flows or drops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<EventKind>,
    /// The key of a drop reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// IP protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Port of either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl EventFilter {
    /// Whether an event passes the filter.
    pub fn matches(&self, event: &FlowEvent) -> bool {
        self.matches_flow(&event.source, &event.destination, event.protocol)
            && self.verdict.is_none_or(|verdict| verdict == event.verdict)
            && self.kind.is_none_or(|kind| kind == event.kind)
            && self.reason.as_deref().is_none_or(|reason| event.drop_reason.as_deref() == Some(reason))
    }

    /// Whether the filter concerns labels or endpoints, which only the agent knows.
    pub fn needs_names(&self) -> bool {
        let named =
            |filter: &PartyFilter| matches!(filter, PartyFilter::Label { .. } | PartyFilter::Endpoint(_));
        self.from.iter().chain(&self.to).any(named)
    }

    /// Whether a flow between these two is wanted: the part of the filter that needs no event.
    pub fn matches_flow(&self, source: &Party, destination: &Party, protocol: Protocol) -> bool {
        self.from.as_ref().is_none_or(|filter| filter.matches(source))
            && self.to.as_ref().is_none_or(|filter| filter.matches(destination))
            && self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.port.is_none_or(|port| source.port == port || destination.port == port)
    }
}

#[cfg(test)]
mod tests {
    use identity::Labels;

    use super::*;

    fn party(address: &str, identity: u32, labels: &str, endpoint: Option<&str>, port: u16) -> Party {
        Party {
            address: Some(address.parse().unwrap()),
            port,
            identity: Identity::new(identity).unwrap(),
            labels: labels.parse::<Labels>().unwrap(),
            endpoint: endpoint.map(|name| EndpointName::new(name).unwrap()),
            node: None,
        }
    }

    fn event() -> FlowEvent {
        FlowEvent {
            unix_us: 0,
            kind: EventKind::FlowNew,
            verdict: Verdict::Forwarded,
            direction: "egress".to_owned(),
            source: party("10.0.0.1", 300, "app=client", Some("client-1"), 40_000),
            destination: party("10.0.1.2", 301, "app=web,tier=front", None, 80),
            protocol: Protocol(6),
            tcp_flags: String::new(),
            action: None,
            drop_reason: None,
            tunnel_source: None,
            ifindex: 1,
            packets: 0,
            bytes: 0,
        }
    }

    #[test]
    fn filters_by_party() {
        let check = |from: &str, expected: bool| {
            let filter = EventFilter { from: Some(from.parse().unwrap()), ..Default::default() };
            assert_eq!(filter.matches(&event()), expected, "from {from}");
        };
        check("10.0.0.1", true);
        check("10.0.0.2", false);
        check("10.0.0.0/24", true);
        check("10.0.1.0/24", false);
        check("identity:300", true);
        check("identity:301", false);
        check("app=client", true);
        check("app=web", false);
        check("client-1", true);
        check("endpoint:client-1", true);
        check("host", false);
    }

    #[test]
    fn filter_conditions_must_all_hold() {
        let check = |filter: EventFilter, expected: bool| assert_eq!(filter.matches(&event()), expected);
        check(EventFilter::default(), true);
        check(EventFilter { port: Some(80), ..Default::default() }, true);
        check(EventFilter { port: Some(81), ..Default::default() }, false);
        check(EventFilter { protocol: Some(Protocol(17)), ..Default::default() }, false);
        check(EventFilter { verdict: Some(Verdict::Dropped), ..Default::default() }, false);
        check(EventFilter { kind: Some(EventKind::FlowNew), ..Default::default() }, true);
        check(EventFilter { reason: Some("fragment".to_owned()), ..Default::default() }, false);
        let both = EventFilter {
            from: Some("app=client".parse().unwrap()),
            to: Some("tier=back".parse().unwrap()),
            ..Default::default()
        };
        assert!(both.needs_names());
        check(both, false);
    }

    #[test]
    fn filter_texts_round_trip_and_errors_name_valid_forms() {
        for text in ["10.0.0.1/32", "10.0.0.0/8", "identity:300", "app=web", "endpoint:web-1"] {
            assert_eq!(text.parse::<PartyFilter>().unwrap().to_string(), text);
        }
        assert_eq!("remote-node".parse(), Ok(PartyFilter::Identity(Identity::REMOTE_NODE)));
        for text in ["", "identity:x", "=x", "endpoint:", "Web 1"] {
            assert!(
                text.parse::<PartyFilter>().unwrap_err().to_string().contains("use an address"),
                "{text}"
            );
        }
    }
}
