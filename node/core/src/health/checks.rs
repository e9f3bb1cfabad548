//! The checks that this node makes: which, when, and what became of each.

use std::{net::Ipv4Addr, net::SocketAddr, time::Duration};

use datapath_plan::BackendState;
use identity::{NodeName, ServiceName};
use kvstore_schema::service::HealthCheck;
use node_facts::Unwell;
use serde::{Deserialize, Serialize};

use super::{
    CheckKey, Outside,
    check::{Check, Opinion},
    checkers,
};
use crate::{Command, EndpointState, Probe, ProbeId, ProbeTarget, node::Node};

/// Checks are made at multiples of this: some hundred of them wake the node twenty times a second and not each for itself.
const GRID: Duration = Duration::from_millis(50);

fn on_grid(at: Duration) -> Duration {
    let grid = GRID.as_millis() as u64;
    Duration::from_millis((at.as_millis() as u64).next_multiple_of(grid))
}

/// What is to be done at a moment: somebody is asked, or a member is held back no longer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Due {
    Backend(CheckKey),
    Node(NodeName),
    Held(Ipv4Addr),
}

impl Node {
    fn health_check(&self, service: &ServiceName) -> Option<&HealthCheck> {
        self.view.services().get(service)?.record.spec.health_check.as_deref()
    }

    /// Finds out which checks of a service's members at an address are to be made, and which of them here.
    pub(super) fn refresh_checks(&mut self, service: &ServiceName, address: Ipv4Addr) {
        let members = self.health.ports(service, address);
        let asked: Vec<u16> = match self.health_check(service).map(|check| check.port) {
            None => Vec::new(),
            Some(Some(port)) => members.first().map(|_| port).into_iter().collect(),
            Some(None) => members,
        };
        let owner = self.peers.owner_of_ip(address.into());
        // One that is on its way into the kernel cannot answer.
        let attached =
            self.endpoints.at(address.into()).is_none_or(|endpoint| endpoint.state == EndpointState::Ready);
        let (outside, ours) = (owner.is_none(), attached && owner == Some(&self.config.node));
        self.follow_outside(service, address, if outside { &asked } else { &[] });
        let mine = |port: &u16| {
            let chosen = || self.health.outside.get(&(address, *port)).map(|it| &it.checkers);
            ours || (outside && chosen().is_some_and(|checkers| checkers.contains(&self.config.node)))
        };
        let mine: Vec<u16> = asked.iter().copied().filter(mine).collect();
        let key = |port| CheckKey { service: service.clone(), address, port };
        let known = self.health.checks.range(key(0)..=key(u16::MAX));
        let gone: Vec<CheckKey> =
            known.filter(|(key, _)| !mine.contains(&key.port)).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| self.end_check(key));
        for port in mine {
            self.begin_check(key(port));
        }
    }

    /// Notes which ports of an address outside the fleet are to be checked for a service.
    fn follow_outside(&mut self, service: &ServiceName, address: Ipv4Addr, ports: &[u16]) {
        let former = self.health.outside.range_mut((address, 0)..=(address, u16::MAX));
        for (_, outside) in former.filter(|((_, port), _)| !ports.contains(port)) {
            outside.services.remove(service);
        }
        for port in ports {
            let Some(outside) = self.health.outside.get_mut(&(address, *port)) else {
                let checkers = checkers::choose(self.health.eligible.iter(), address, *port);
                let services = [service.clone()].into();
                self.health.outside.insert((address, *port), Outside { checkers, services });
                continue;
            };
            outside.services.insert(service.clone());
        }
        let emptied = self.health.outside.range((address, 0)..=(address, u16::MAX));
        let emptied: Vec<_> =
            emptied.filter(|(_, outside)| outside.services.is_empty()).map(|(place, _)| *place).collect();
        emptied.iter().for_each(|place| drop(self.health.outside.remove(place)));
    }

    /// A node may be chosen as a checker from now on, or no more: the checks that this moves move. O(addresses outside).
    pub(super) fn choose_checkers_again(&mut self) {
        if !std::mem::take(&mut self.health.choose_again) {
            return;
        }
        let mut moved = Vec::new();
        for ((address, port), outside) in &mut self.health.outside {
            let chosen = checkers::choose(self.health.eligible.iter(), *address, *port);
            if chosen != outside.checkers {
                outside.checkers = chosen;
                moved.extend(outside.services.iter().map(|service| (service.clone(), *address)));
            }
        }
        self.health.touched.extend(moved);
    }

    fn begin_check(&mut self, key: CheckKey) {
        if self.health.checks.contains_key(&key) {
            return;
        }
        let Some(interval) = self.health_check(&key.service).map(|check| check.interval.get()) else {
            return;
        };
        let member = |port| (key.address, key.service.clone(), port);
        let adopted = self.health.adopted.range(member(0)..=member(u16::MAX)).next().map(|(_, state)| *state);
        // One that the kernel had is asked in its turn, as all others of this node; a new one at once.
        let (opinion, wait) = match adopted {
            // Outside the fleet nobody can say whether it is new.
            None => {
                let presumed_well = self.peers.owner_of_ip(key.address.into()).is_none();
                (Opinion::Unasked { presumed_well }, Duration::ZERO)
            }
            Some(BackendState::Unhealthy) => {
                let why = "as before the restart".to_owned();
                (Opinion::Unwell { good: 0, why }, interval.mul_f64(self.rng.f64()))
            }
            Some(BackendState::Active | BackendState::Terminating) => {
                (Opinion::Well { bad: 0 }, interval.mul_f64(self.rng.f64()))
            }
        };
        let due = self.now.monotonic + wait;
        let check = Check::new(opinion, due);
        if check.unwell().is_some() {
            self.health.unwell.insert(key.clone());
        }
        self.health.due.insert((due, Due::Backend(key.clone())));
        self.health.checks.insert(key, check);
    }

    fn end_check(&mut self, key: &CheckKey) {
        let Some(check) = self.health.checks.remove(key) else { return };
        self.health.unwell.remove(key);
        if let Some(due) = check.due {
            self.health.due.remove(&(due, Due::Backend(key.clone())));
        }
        if let Some(asked) = check.asked {
            self.health.in_flight.remove(&asked);
        }
    }

    /// Asks whoever is due.
    pub(crate) fn pursue_health(&mut self) {
        let mut probes = Vec::new();
        while let Some((at, asked)) = self.health.due.pop_first() {
            if at > self.now.monotonic {
                self.health.due.insert((at, asked));
                break;
            }
            self.health.last_probe += 1;
            let id = ProbeId(self.health.last_probe);
            let probe = match &asked {
                Due::Backend(key) => self.question(key, id),
                Due::Node(node) => self.echo(node, id),
                Due::Held(address) => {
                    self.release_member(*address);
                    None
                }
            };
            if let Some(probe) = probe {
                self.health.in_flight.insert(id, asked);
                probes.push(probe);
            }
        }
        if !probes.is_empty() {
            self.out.push(Command::Probe(probes));
        }
    }

    fn question(&mut self, key: &CheckKey, id: ProbeId) -> Option<Probe> {
        let spec = self.health_check(&key.service)?;
        let (probe, timeout) = (spec.probe.clone(), spec.timeout.get());
        let check = self.health.checks.get_mut(key)?;
        (check.due, check.asked) = (None, Some(id));
        let target = ProbeTarget::Backend { at: SocketAddr::from((key.address, key.port)), probe };
        Some(Probe { id, target, timeout })
    }

    pub(crate) fn on_probed(&mut self, answers: Vec<(ProbeId, Result<(), String>)>) {
        for (id, answer) in answers {
            match self.health.in_flight.remove(&id) {
                Some(Due::Backend(key)) => self.on_backend_answer(&key, answer),
                Some(Due::Node(node)) => self.on_echo(node, answer.is_ok()),
                // It is asked for no more.
                Some(Due::Held(_)) | None => {}
            }
        }
    }

    fn on_backend_answer(&mut self, key: &CheckKey, answer: Result<(), String>) {
        let Some(spec) = self.health_check(&key.service).cloned() else { return };
        // Spread, so that checks that began together do not stay together.
        let pause = spec.interval.get().mul_f64(0.9 + 0.2 * self.rng.f64());
        let answer = answer.map_err(|why| Unwell::reason(&why));
        let Some(check) = self.health.checks.get_mut(key) else { return };
        let due = on_grid(self.now.monotonic + pause);
        (check.due, check.asked) = (Some(due), None);
        let changed = check.answered(&spec, answer);
        let unwell = check.unwell().is_some();
        self.health.due.insert((due, Due::Backend(key.clone())));
        if !changed {
            return;
        }
        match unwell {
            true => drop(self.health.unwell.insert(key.clone())),
            false => drop(self.health.unwell.remove(key)),
        }
        self.health.touch(&key.service, key.address);
    }
}
