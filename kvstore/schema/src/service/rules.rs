//! Which specs make sense, and their one form.

use std::{collections::BTreeSet, net::IpAddr};

use identity::check_name;

use super::{FixedBackend, ServiceSpec, VirtualIp};

/// The most ports of one service: each is a table of backends in every kernel.
pub const MAX_SERVICE_PORTS: usize = 64;
/// The most backends that one service lists; more than that are a fleet's, and found by labels.
pub const MAX_FIXED_BACKENDS: usize = 512;
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
        if mistakes.is_empty() { Ok(()) } else { Err(SpecError(mistakes)) }
    }

    fn check_ports(&self, mistakes: &mut Vec<String>) {
        if self.ports.is_empty() || self.ports.len() > MAX_SERVICE_PORTS {
            mistakes.push(format!("spec.ports: has {}; use 1 to {MAX_SERVICE_PORTS}", self.ports.len()));
        }
        let mut seen = BTreeSet::new();
        let mut names = BTreeSet::new();
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

    /// The same with everything filled in and in order: two specs that mean the same are equal.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        for port in &mut self.ports {
            port.target_port.get_or_insert(port.port);
        }
        self.backends.sort();
        self
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
