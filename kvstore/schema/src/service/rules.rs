//! Which specs are valid, and their normal form.

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use identity::check_name;
use ipnetwork::IpNetwork;

use super::{FixedBackend, NodePort, ServicePort, ServiceProtocol, ServiceSpec, VirtualIp};

/// The most ports of one service: each is a table of backends in every kernel.
pub const MAX_SERVICE_PORTS: usize = 64;
/// The most backends that one service lists; more than that are a fleet's, and found by labels.
pub const MAX_FIXED_BACKENDS: usize = 512;
/// The most ports of nodes and external addresses of one service, each port of each address counted: a change that replaces
/// all of them by others is still one transaction of etcd (128 operations), and is written again in one piece after a loss.
pub const MAX_FRONTENDS: usize = 48;
/// The most source ranges of one service: each is an entry of a table in every kernel.
pub const MAX_SOURCE_RANGES: usize = 128;
/// The ports of nodes that services may have, as in Kubernetes; below those that Linux gives to connections (32768-60999).
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The longest that a client may be silent, as in Kubernetes: a day.
const MAX_AFFINITY_SECONDS: u32 = 86_400;
/// The greatest weight: finer shares than a thousandth show in no table of backends.
pub const MAX_WEIGHT: u16 = 1_000;

/// All that is wrong with a spec, each with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct SpecError(pub Vec<String>);

impl ServiceSpec {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// All mistakes.
    pub fn validate(&self) -> Result<(), SpecError> {
        let mut mistakes = Vec::new();
        if let VirtualIp::Address(address) = self.virtual_ip {
            mistakes.extend(check_address("spec.virtualIp", address));
        }
        self.check_ports(&mut mistakes);
        self.check_backends(&mut mistakes);
        self.check_outside(&mut mistakes);
        if let Some(check) = &self.health_check {
            check.check(&self.ports, &mut mistakes);
        }
        if mistakes.is_empty() { Ok(()) } else { Err(SpecError(mistakes)) }
    }

    fn check_ports(&self, mistakes: &mut Vec<String>) {
        if self.ports.is_empty() || self.ports.len() > MAX_SERVICE_PORTS {
            mistakes.push(format!("spec.ports: has {}; use 1 to {MAX_SERVICE_PORTS}", self.ports.len()));
        }
        let mut seen = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut of_nodes = BTreeSet::new();
        for (index, port) in self.ports.iter().enumerate() {
            let mut wrong = |text: String| mistakes.push(format!("spec.ports[{index}].{text}"));
            if port.port == 0 {
                wrong("port: 0 is none; use 1 to 65535".to_owned());
            }
            if port.target_port == Some(0) {
                wrong("targetPort: 0 is none; use 1 to 65535".to_owned());
            }
            if !seen.insert((port.protocol, port.port)) {
                wrong(format!("port: {}/{} is there twice", port.port, port.protocol));
            }
            match &port.name {
                Some(name) => {
                    if let Err(error) = check_name(name) {
                        wrong(format!("name: {error}"));
                    }
                    if !names.insert(name) {
                        wrong(format!("name: {name:?} is there twice"));
                    }
                }
                None if self.ports.len() > 1 => {
                    wrong("name: needed, since there are several ports".to_owned());
                }
                None => {}
            }
            check_node_ports(port, &mut of_nodes, &mut wrong);
            if port.protocol == ServiceProtocol::Sctp {
                self.check_sctp(port, &mut wrong);
            }
        }
    }

    /// SCTP's checksum cannot be updated incrementally, so the programs change no port.
    fn check_sctp(&self, port: &ServicePort, wrong: &mut impl FnMut(String)) {
        let other = |target: Option<u16>| target.is_some_and(|target| target != port.port);
        if other(port.target_port) || self.backends.iter().any(|backend| other(backend.port)) {
            wrong("targetPort: SCTP keeps its port: the backends' must be the same".to_owned());
        }
        if port.node_port.is_some() || port.host_port.is_some() || !self.external_ips.is_empty() {
            wrong(
                "protocol: not there yet: SCTP of clients outside the fleet; leave out nodePort, hostPort and externalIps"
                    .to_owned(),
            );
        }
    }

    /// The fields that concern external clients.
    fn check_outside(&self, mistakes: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for (index, address) in self.external_ips.iter().enumerate() {
            let place = format!("spec.externalIps[{index}]");
            mistakes.extend(check_address(&place, *address));
            if !seen.insert(*address) {
                mistakes.push(format!("{place}: {address} is there twice"));
            }
            if self.virtual_ip == VirtualIp::Address(*address) {
                mistakes.push(format!("{place}: {address} is the virtualIp"));
            }
        }
        let of_nodes = |port: &ServicePort| {
            usize::from(port.node_port.is_some()) + usize::from(port.host_port.is_some())
        };
        let frontends = self.ports.iter().map(|port| of_nodes(port) + self.external_ips.len());
        let frontends: usize = frontends.sum();
        if frontends > MAX_FRONTENDS {
            mistakes.push(format!(
                "spec: has {frontends} node ports, host ports and ports of external addresses; at most {MAX_FRONTENDS} are \
                 allowed: make several services"
            ));
        }
        if self.source_ranges.len() > MAX_SOURCE_RANGES {
            mistakes.push(format!(
                "spec.sourceRanges: has {}; at most {MAX_SOURCE_RANGES} are allowed",
                self.source_ranges.len()
            ));
        }
        for (index, range) in self.source_ranges.iter().enumerate() {
            let place = format!("spec.sourceRanges[{index}]");
            let network = range.network();
            if let IpNetwork::V6(_) = range {
                mistakes.push(format!("{place}: not there yet: IPv6 ({range})"));
            } else if range.ip() != network {
                mistakes
                    .push(format!("{place}: {range} has host bits set; write {network}/{}", range.prefix()));
            }
        }
        if let Some(affinity) = self.affinity
            && !(1..=MAX_AFFINITY_SECONDS).contains(&affinity.timeout_seconds)
        {
            mistakes.push(format!(
                "spec.affinity.timeoutSeconds: {} is out of range; use 1 to {MAX_AFFINITY_SECONDS}",
                affinity.timeout_seconds
            ));
        }
    }

    fn check_backends(&self, mistakes: &mut Vec<String>) {
        match (&self.selector, self.backends.is_empty()) {
            (None, true) => mistakes.push("spec: needs a selector, or backends".to_owned()),
            (Some(_), false) => {
                mistakes.push("spec: has a selector and backends; use one of them".to_owned());
            }
            (Some(selector), true) => {
                mistakes.extend(selector.validate().err().map(|error| format!("spec.{error}")));
            }
            (None, false) => {}
        }
        if self.backends.len() > MAX_FIXED_BACKENDS {
            mistakes.push(format!(
                "spec.backends: has {}; at most {MAX_FIXED_BACKENDS} are allowed",
                self.backends.len()
            ));
        }
        let mut seen = BTreeSet::new();
        for (index, FixedBackend { address, port, weight }) in self.backends.iter().enumerate() {
            let place = format!("spec.backends[{index}]");
            mistakes.extend(check_address(&format!("{place}.address"), *address));
            if *port == Some(0) {
                mistakes.push(format!("{place}.port: 0 is none; use 1 to 65535"));
            }
            if !(1..=MAX_WEIGHT).contains(weight) {
                mistakes.push(format!("{place}.weight: {weight} is out of range; use 1 to {MAX_WEIGHT}"));
            }
            if !seen.insert((*address, *port)) {
                mistakes.push(format!("{place}: {address} is there twice"));
            }
        }
    }

    /// The normal form, with defaults filled in and lists sorted: two specs of one meaning are equal.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        for port in &mut self.ports {
            port.target_port.get_or_insert(port.port);
        }
        self.backends.sort();
        self.external_ips.sort_unstable();
        self.source_ranges.sort_unstable();
        self.source_ranges.dedup();
        self
    }
}

/// `seen`: the ports of nodes that the service has already.
fn check_node_ports(
    port: &ServicePort,
    seen: &mut BTreeSet<(ServiceProtocol, u16)>,
    wrong: &mut impl FnMut(String),
) {
    let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
    if let Some(NodePort::Number(number)) = port.node_port {
        if !NODE_PORTS.contains(&number) {
            wrong(format!("nodePort: {number} is out of range; use {first} to {last}, or auto"));
        } else if !seen.insert((port.protocol, number)) {
            wrong(format!("nodePort: {number}/{} is there twice", port.protocol));
        }
    }
    if let Some(number) = port.host_port {
        if number == 0 {
            wrong("hostPort: 0 is none; use 1 to 65535".to_owned());
        } else if NODE_PORTS.contains(&number) {
            wrong(format!("hostPort: {number} is one of the node ports ({first} to {last}); use another"));
        } else if !seen.insert((port.protocol, number)) {
            wrong(format!("hostPort: {number}/{} is there twice", port.protocol));
        }
    }
}

/// An address that a packet can be sent to.
fn check_address(place: &str, address: IpAddr) -> Option<String> {
    let IpAddr::V4(v4) = address else {
        return Some(format!("{place}: not there yet: IPv6 ({address})"));
    };
    let strange = v4.is_unspecified()
        || v4.is_loopback()
        || v4.is_multicast()
        || v4.is_broadcast()
        || v4.is_link_local();
    strange.then(|| format!("{place}: {address} is no address of one machine that others reach"))
}
