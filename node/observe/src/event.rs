//! Flow events, decoded from the bytes that the programs report.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use datapath_abi::{Direction, DropReason};
use identity::{EndpointName, Identity, Labels, NodeName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The first packet of a flow was forwarded.
    FlowNew,
    /// A flow ended, or was idle for too long.
    FlowEnd,
    /// A packet was dropped.
    Drop,
}

/// The verdict on the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The packet was forwarded.
    Forwarded,
    /// The packet was dropped.
    Dropped,
}

/// An IP protocol, written as a name if it is a common one, and as a number otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "tcp")]
pub struct Protocol(pub u8);

const PROTOCOL_NAMES: [(u8, &str); 4] = [(1, "icmp"), (6, "tcp"), (17, "udp"), (132, "sctp")];

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOL_NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let by_name = PROTOCOL_NAMES.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
        by_name.or_else(|| text.parse().ok()).map(Self).ok_or_else(|| {
            format!("{text:?} is not a protocol: use tcp, udp, icmp, sctp or a number from 0 to 255")
        })
    }
}

impl TryFrom<String> for Protocol {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Protocol> for String {
    fn from(protocol: Protocol) -> Self {
        protocol.to_string()
    }
}

/// One side of a flow. Address and identity come from the kernel; the agent adds the rest, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Party {
    /// The address; missing if the packet was neither IPv4 nor IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The port; for the sender of an ICMP echo request the identifier; 0 without ports.
    pub port: u16,
    /// The identity; 0 for unknown.
    #[schema(value_type = u32)]
    pub identity: Identity,
    /// The labels of the identity.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// The endpoint's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<EndpointName>,
    /// The endpoint's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeName>,
}

impl Party {
    /// A party without names.
    pub fn bare(address: Option<IpAddr>, port: u16, identity: Identity) -> Self {
        Self { address, port, identity, labels: Labels::default(), endpoint: None, node: None }
    }
}

impl fmt::Display for Party {
    /// `10.1.2.3:80 (web-1, identity 300)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (None, _) => f.write_str("?")?,
            (Some(address), 0) => write!(f, "{address}")?,
            (Some(IpAddr::V4(address)), port) => write!(f, "{address}:{port}")?,
            (Some(IpAddr::V6(address)), port) => write!(f, "[{address}]:{port}")?,
        }
        f.write_str(" (")?;
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}, ")?;
        }
        match self.identity.reserved_name() {
            Some(name) => write!(f, "{name})"),
            None => write!(f, "identity {})", self.identity),
        }
    }
}

/// One event of a flow, or one dropped packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowEvent {
    /// The time, in microseconds since 1970.
    pub unix_us: u64,
    /// The kind of the event.
    pub kind: EventKind,
    /// The verdict on the packet.
    pub verdict: Verdict,
    /// `egress` or `ingress`, relative to the endpoint.
    pub direction: String,
    /// The sender.
    pub source: Party,
    /// The receiver.
    pub destination: Party,
    /// IP protocol.
    pub protocol: Protocol,
    /// TCP flags, as `SYN|ACK`; empty for other protocols.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tcp_flags: String,
    /// Where the packet went: `local`, `tunnel`, `host`, `stack`, `underlay`; missing for a drop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The key of the drop reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<String>,
    /// The outer source address of a tunnel packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub tunnel_source: Option<Ipv4Addr>,
    /// The interface at which the program ran.
    pub ifindex: u32,
    /// Packets of the flow in both directions; 0 unless the flow ended.
    pub packets: u64,
    /// Bytes of the flow in both directions; for a drop, of the packet.
    pub bytes: u64,
}

/// The offset between the kernel's clock and UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootTime {
    /// The time at which `bpf_ktime_get_ns` was 0, in microseconds since 1970.
    pub unix_us: u64,
}

/// Why a report of the programs cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The kind is not known to this version.
    #[error("unknown kind of event {0}")]
    Kind(u8),
    /// The drop reason is not known to this version.
    #[error("unknown drop reason {0}")]
    Reason(u8),
    /// The direction is not valid.
    #[error("unknown direction {0}")]
    Direction(u8),
    /// The number is not an identity.
    #[error("{0} is not an identity")]
    Identity(u32),
}

impl FlowEvent {
    /// Decodes a report of the programs.
    ///
    /// # Errors
    /// If a number in the report is not known to this version, as programs of another version are attached.
    pub fn decode(event: &datapath_abi::Event, boot: BootTime) -> Result<Self, DecodeError> {
        let kind = match event.kind {
            1 => EventKind::FlowNew,
            2 => EventKind::FlowEnd,
            3 => EventKind::Drop,
            other => return Err(DecodeError::Kind(other)),
        };
        let drop_reason = match kind {
            EventKind::Drop => {
                Some(DropReason::from_number(event.reason).ok_or(DecodeError::Reason(event.reason))?)
            }
            EventKind::FlowNew | EventKind::FlowEnd => None,
        };
        let direction = Direction::ALL
            .iter()
            .find(|direction| **direction as u8 == event.direction)
            .ok_or(DecodeError::Direction(event.direction))?;
        let party = |bytes: [u8; 16], port_be: [u8; 2], number: u32| {
            let identity = Identity::new(number).map_err(|_| DecodeError::Identity(number))?;
            Ok(Party::bare(address(event.family, bytes), u16::from_be_bytes(port_be), identity))
        };
        Ok(Self {
            unix_us: boot.unix_us + event.time_ns / 1_000,
            kind,
            verdict: if kind == EventKind::Drop { Verdict::Dropped } else { Verdict::Forwarded },
            direction: direction.key().to_owned(),
            source: party(event.src, event.src_port_be, event.src_identity)?,
            destination: party(event.dst, event.dst_port_be, event.dst_identity)?,
            protocol: Protocol(event.protocol),
            tcp_flags: tcp_flags(event.protocol, event.tcp_flags),
            action: action_key(event.action).map(str::to_owned),
            drop_reason: drop_reason.map(|reason| reason.key().to_owned()),
            tunnel_source: (event.outer_src_v4 != [0; 4]).then(|| event.outer_src_v4.into()),
            ifindex: event.ifindex,
            packets: event.packets,
            bytes: event.bytes,
        })
    }
}

impl fmt::Display for FlowEvent {
    /// One line without the time: `drop source-spoofed egress tcp 10.0.0.1:1 (…) -> 10.0.0.2:80 (…)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, &self.drop_reason) {
            (EventKind::Drop, reason) => write!(f, "drop {}", reason.as_deref().unwrap_or("unknown"))?,
            (EventKind::FlowNew, _) => write!(f, "new  {}", self.action.as_deref().unwrap_or("?"))?,
            (EventKind::FlowEnd, _) => write!(f, "end  {}", self.action.as_deref().unwrap_or("?"))?,
        }
        write!(f, " {} {} {} -> {}", self.direction, self.protocol, self.source, self.destination)?;
        if !self.tcp_flags.is_empty() {
            write!(f, " {}", self.tcp_flags)?;
        }
        if let Some(node) = self.tunnel_source {
            write!(f, " from tunnel {node}")?;
        }
        match self.kind {
            EventKind::FlowEnd => write!(f, " {} packets {} bytes", self.packets, self.bytes),
            EventKind::Drop => write!(f, " {} bytes", self.bytes),
            EventKind::FlowNew => Ok(()),
        }
    }
}

fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    let address = Ipv6Addr::from(bytes);
    match family {
        4 => address.to_ipv4_mapped().map(IpAddr::V4),
        6 => Some(IpAddr::V6(address)),
        _ => None,
    }
}

/// The word for a `FlowAction`; `None` for 0 and for unknown numbers.
fn action_key(action: u8) -> Option<&'static str> {
    use datapath_abi::FlowAction as Action;
    Action::from_number(action).map(|action| match action {
        Action::Local => "local",
        Action::Tunnel => "tunnel",
        Action::Host => "host",
        Action::Stack => "stack",
        Action::Underlay => "underlay",
    })
}

/// The names of TCP flags, as `SYN|ACK`; empty for other protocols.
pub fn tcp_flags(protocol: u8, flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    if protocol != 6 {
        return String::new();
    }
    let set: Vec<&str> =
        NAMES.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0).map(|(_, name)| *name).collect();
    set.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(a: u8, b: u8, c: u8, d: u8) -> [u8; 16] {
        Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets()
    }

    fn report() -> datapath_abi::Event {
        datapath_abi::Event {
            time_ns: 5_000_000,
            bytes: 74,
            src: mapped(10, 0, 0, 1),
            dst: mapped(10, 0, 1, 2),
            src_identity: 300,
            dst_identity: 0,
            ifindex: 7,
            outer_src_v4: [192, 0, 2, 1],
            src_port_be: 40_000u16.to_be_bytes(),
            dst_port_be: 80u16.to_be_bytes(),
            kind: datapath_abi::EventKind::Drop as u8,
            reason: DropReason::SourceSpoofed as u8,
            direction: Direction::Ingress as u8,
            protocol: 6,
            family: 4,
            tcp_flags: 0x12,
            ..Default::default()
        }
    }

    #[test]
    fn event_of_a_drop_is_decoded_and_printed() {
        let event = FlowEvent::decode(&report(), BootTime { unix_us: 1_000 }).unwrap();
        assert_eq!(
            event.to_string(),
            "drop source-spoofed ingress tcp 10.0.0.1:40000 (identity 300) -> 10.0.1.2:80 (unknown) SYN|ACK \
             from tunnel 192.0.2.1 74 bytes"
        );
        assert_eq!(event.unix_us, 6_000);
        assert_eq!(event.verdict, Verdict::Dropped);
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<FlowEvent>(&text).unwrap(), event);
    }

    #[test]
    fn event_numbers_of_another_version_are_errors() {
        let check = |change: fn(&mut datapath_abi::Event), expected: DecodeError| {
            let mut event = report();
            change(&mut event);
            assert_eq!(FlowEvent::decode(&event, BootTime { unix_us: 0 }), Err(expected));
        };
        check(|event| event.kind = 9, DecodeError::Kind(9));
        check(|event| event.reason = 0, DecodeError::Reason(0));
        check(|event| event.direction = 2, DecodeError::Direction(2));
        check(|event| event.src_identity = u32::MAX, DecodeError::Identity(u32::MAX));
    }

    #[test]
    fn event_of_a_packet_without_addresses() {
        let event = datapath_abi::Event { family: 0, ..report() };
        let event = FlowEvent::decode(&event, BootTime { unix_us: 0 }).unwrap();
        assert_eq!((event.source.address, event.destination.address), (None, None));
    }

    #[test]
    fn protocol_by_name_and_number() {
        assert_eq!("tcp".parse::<Protocol>().unwrap(), Protocol(6));
        assert_eq!("47".parse::<Protocol>().unwrap().to_string(), "47");
        assert!("tpc".parse::<Protocol>().unwrap_err().contains("use tcp"));
    }
}
