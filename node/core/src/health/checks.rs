//! The checks that this node makes: which, when, and how each turns out.

use std::{net::Ipv4Addr, net::SocketAddr, time::Duration};

use datapath_plan::BackendState;
use identity::{NodeName, ServiceName};
use node_facts::Unwell;
use serde::{Deserialize, Serialize};

use super::{
    CheckKey, External, Health,
    check::{Check, Status},
    checkers, health_check,
};
use crate::{
    Command, EndpointState, Probe, ProbeId, ProbeTarget, context::Context, fleet::Fleet, ipcache::Sources,
    peers::Peers,
};

/// Checks are made at multiples of this: hundreds of them wake the node twenty times a second and not each for itself.
const GRID: Duration = Duration::from_millis(50);

fn on_grid(at: Duration) -> Duration {
    let grid = GRID.as_millis() as u64;
    Duration::from_millis((at.as_millis() as u64).next_multiple_of(grid))
}

/// What is due at a time: a probe, or the end of holding a member back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Due {
    Backend(CheckKey),
    Node(NodeName),
    Held(Ipv4Addr),
}

impl Health {
    /// Finds out which checks a service's members at an address need, and which of them this node makes.
    pub(super) fn refresh_checks(
        &mut self,
        cx: &mut Context,
        sources: Sources<'_>,
        service: &ServiceName,
        address: Ipv4Addr,
    ) {
        let Sources { fleet, peers, endpoints, .. } = sources;
        let members = self.ports(service, address);
        let probed: Vec<u16> = match health_check(fleet, service).map(|check| check.port) {
            None => Vec::new(),
            Some(Some(port)) => members.first().map(|_| port).into_iter().collect(),
            Some(None) => members,
        };
        let owner = peers.owner_of_ip(address.into());
        // An endpoint that is being attached cannot answer.
        let attached =
            endpoints.at(address.into()).is_none_or(|endpoint| endpoint.state == EndpointState::Ready);
        let (external, ours) = (owner.is_none(), attached && owner == Some(fleet.node()));
        self.follow_external(service, address, if external { &probed } else { &[] });
        let mine = |port: &u16| {
            let chosen = || self.external.get(&(address, *port)).map(|it| &it.checkers);
            ours || (external && chosen().is_some_and(|checkers| checkers.contains(fleet.node())))
        };
        let mine: Vec<u16> = probed.iter().copied().filter(mine).collect();
        let key = |port| CheckKey { service: service.clone(), address, port };
        let known = self.checks.range(key(0)..=key(u16::MAX));
        let gone: Vec<CheckKey> =
            known.filter(|(key, _)| !mine.contains(&key.port)).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| self.end_check(key));
        for port in mine {
            self.begin_check(cx, fleet, key(port), external);
        }
    }

    /// Notes which ports of an external address are to be checked for a service.
    fn follow_external(&mut self, service: &ServiceName, address: Ipv4Addr, ports: &[u16]) {
        let at_address = (address, 0)..=(address, u16::MAX);
        let former = self.external.range_mut(at_address.clone());
        for (_, external) in former.filter(|((_, port), _)| !ports.contains(port)) {
            external.services.remove(service);
        }
        for port in ports {
            let external = self.external.entry((address, *port)).or_insert_with(|| External {
                checkers: checkers::choose(self.eligible.iter(), address, *port),
                services: Default::default(),
            });
            external.services.insert(service.clone());
        }
        let unused = self.external.range(at_address).filter(|(_, external)| external.services.is_empty());
        let unused: Vec<_> = unused.map(|(at, _)| *at).collect();
        unused.iter().for_each(|at| drop(self.external.remove(at)));
    }

    /// Nodes became eligible as checkers, or are not any more: the checks concerned move. O(external addresses).
    pub(super) fn choose_checkers_again(&mut self) {
        if !std::mem::take(&mut self.choose_again) {
            return;
        }
        for ((address, port), external) in &mut self.external {
            let chosen = checkers::choose(self.eligible.iter(), *address, *port);
            if chosen != external.checkers {
                external.checkers = chosen;
                self.touched.extend(external.services.iter().map(|service| (service.clone(), *address)));
            }
        }
    }

    fn begin_check(&mut self, cx: &mut Context, fleet: &Fleet, key: CheckKey, external: bool) {
        if self.checks.contains_key(&key) {
            return;
        }
        let Some(interval) = health_check(fleet, &key.service).map(|check| check.interval.get()) else {
            return;
        };
        let member = |port| (key.address, key.service.clone(), port);
        let adopted = self.adopted.range(member(0)..=member(u16::MAX)).next().map(|(_, state)| *state);
        // A member that the kernel had is probed in its turn, like all others of this node; a new one at once.
        let (status, wait) = match adopted {
            // Of an external member it is not known whether it is new.
            None => (Status::Unknown { presumed_healthy: external }, Duration::ZERO),
            Some(BackendState::Unhealthy) => {
                let why = "as before the restart".to_owned();
                (Status::Unhealthy { good: 0, why }, interval.mul_f64(cx.rng.f64()))
            }
            Some(BackendState::Active | BackendState::Terminating) => {
                (Status::Healthy { bad: 0 }, interval.mul_f64(cx.rng.f64()))
            }
        };
        let due = cx.now.monotonic + wait;
        let check = Check::new(status, due);
        if check.failing().is_some() {
            self.failing.insert(key.clone());
        }
        self.due.insert((due, Due::Backend(key.clone())));
        self.checks.insert(key, check);
    }

    fn end_check(&mut self, key: &CheckKey) {
        let Some(check) = self.checks.remove(key) else { return };
        self.failing.remove(key);
        if let Some(due) = check.due {
            self.due.remove(&(due, Due::Backend(key.clone())));
        }
        if let Some(asked) = check.asked {
            self.in_flight.remove(&asked);
        }
    }

    /// Sends the probes that are due.
    pub(crate) fn pursue(&mut self, cx: &mut Context, fleet: &Fleet, peers: &Peers) {
        let mut probes = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= cx.now.monotonic) {
            let Some((_, due)) = self.due.pop_first() else { break };
            self.last_probe += 1;
            let id = ProbeId(self.last_probe);
            let probe = match &due {
                Due::Backend(key) => self.probe(fleet, key, id),
                Due::Node(node) => self.echo(cx, peers, node, id),
                Due::Held(address) => {
                    self.release(*address);
                    None
                }
            };
            if let Some(probe) = probe {
                self.in_flight.insert(id, due);
                probes.push(probe);
            }
        }
        if !probes.is_empty() {
            cx.command(Command::Probe(probes));
        }
    }

    fn probe(&mut self, fleet: &Fleet, key: &CheckKey, id: ProbeId) -> Option<Probe> {
        let spec = health_check(fleet, &key.service)?;
        let check = self.checks.get_mut(key)?;
        (check.due, check.asked) = (None, Some(id));
        let target =
            ProbeTarget::Backend { at: SocketAddr::from((key.address, key.port)), probe: spec.probe.clone() };
        Some(Probe { id, target, timeout: spec.timeout.get() })
    }

    /// Takes in the results of probes.
    pub(crate) fn on_probed(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        peers: &Peers,
        results: Vec<(ProbeId, Result<(), String>)>,
    ) {
        for (id, result) in results {
            match self.in_flight.remove(&id) {
                Some(Due::Backend(key)) => self.on_backend_probed(cx, fleet, &key, result),
                Some(Due::Node(node)) => self.on_echo(cx, peers, node, result.is_ok()),
                // The check has ended meanwhile.
                Some(Due::Held(_)) | None => {}
            }
        }
    }

    fn on_backend_probed(
        &mut self,
        cx: &mut Context,
        fleet: &Fleet,
        key: &CheckKey,
        result: Result<(), String>,
    ) {
        let Some(spec) = health_check(fleet, &key.service) else { return };
        // Jittered, so that checks that began together do not stay together.
        let pause = spec.interval.get().mul_f64(0.9 + 0.2 * cx.rng.f64());
        let result = result.map_err(|why| Unwell::reason(&why));
        let Some(check) = self.checks.get_mut(key) else { return };
        let due = on_grid(cx.now.monotonic + pause);
        (check.due, check.asked) = (Some(due), None);
        let changed = check.on_result(spec, result);
        let failing = check.failing().is_some();
        self.due.insert((due, Due::Backend(key.clone())));
        if !changed {
            return;
        }
        match failing {
            true => drop(self.failing.insert(key.clone())),
            false => drop(self.failing.remove(key)),
        }
        self.touch(&key.service, key.address);
    }
}
