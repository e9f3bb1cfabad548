//! Which backends may get new flows: what their checks say, whether their node lives, whether they are on their way out.
//!
//! A backend that is an endpoint is checked by its own node; one outside the fleet by a few nodes that all choose alike.
//! Whoever checks tells the others by gossip what is *not* well, and nothing else. Nothing here removes a backend: those
//! that run into it go on (P6), and where all are unwell, all are used.

mod check;
mod checkers;
mod checks;
mod pulse;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use datapath_plan::BackendState;
use identity::{NodeName, ServiceName};
use serde::{Deserialize, Serialize};

use self::{check::Check, checks::Due, pulse::Pulse};
use crate::{ProbeId, limits::GOSSIP_SETTLED, node::Node};

/// What one check is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct CheckKey {
    service: ServiceName,
    address: Ipv4Addr,
    /// The port that is asked.
    port: u16,
}

/// One for all services of a node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Health {
    /// Members of services, by address: how many ports of the service have each.
    members: BTreeMap<Ipv4Addr, BTreeMap<(ServiceName, u16), u32>>,
    /// What the kernel had of a member at the start, as long as nobody has told better.
    adopted: BTreeMap<(Ipv4Addr, ServiceName, u16), BackendState>,
    /// To be looked at again.
    touched: BTreeSet<(ServiceName, Ipv4Addr)>,
    /// Endpoints on their way out.
    terminating: BTreeSet<Ipv4Addr>,
    /// The checks that this node makes, and those of them that say "not well".
    checks: BTreeMap<CheckKey, Check>,
    unwell: BTreeSet<CheckKey>,
    /// What other nodes say is not well, and why.
    told: BTreeMap<CheckKey, BTreeMap<NodeName, String>>,
    /// Addresses outside the fleet that somebody has to check: who does, and for which services.
    outside: BTreeMap<(Ipv4Addr, u16), Outside>,
    /// Nodes that may be chosen for that: of the fleet, and not called dead by gossip.
    eligible: BTreeSet<NodeName>,
    /// Whether those have changed since the last choice.
    choose_again: bool,
    /// Other nodes of which gossip hears nothing.
    silent: BTreeMap<NodeName, Pulse>,
    /// New members on other nodes, whose nodes have not told of them yet: whether they are well is not known.
    held: BTreeSet<Ipv4Addr>,
    /// When checks and echoes are due.
    due: BTreeSet<(Duration, Due)>,
    in_flight: BTreeMap<ProbeId, Due>,
    last_probe: u64,
    /// Whether what has never been heard of counts as silent.
    settled: bool,
}

/// One address and port outside the fleet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Outside {
    checkers: Vec<NodeName>,
    services: BTreeSet<ServiceName>,
}

impl Health {
    fn touch(&mut self, service: &ServiceName, address: Ipv4Addr) {
        self.touched.insert((service.clone(), address));
    }

    /// Looks again at all members with addresses from one to another.
    fn touch_range(&mut self, first: Ipv4Addr, last: Ipv4Addr) {
        for (address, members) in self.members.range(first..=last) {
            self.touched.extend(members.keys().map(|(service, _)| (service.clone(), *address)));
        }
    }

    /// The ports of a service's members at an address.
    fn ports(&self, service: &ServiceName, address: Ipv4Addr) -> Vec<u16> {
        let range = (service.clone(), 0)..=(service.clone(), u16::MAX);
        let members = self.members.get(&address).into_iter().flat_map(|members| members.range(range.clone()));
        members.map(|((_, port), _)| *port).collect()
    }

    /// Nothing is known, and nobody but this node can check anything.
    pub(crate) fn new(own: &NodeName) -> Self {
        Self { eligible: [own.clone()].into(), ..Self::default() }
    }

    /// When there is something to ask, or to judge.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let settles = (!self.settled).then_some(GOSSIP_SETTLED);
        self.due.first().map(|(at, _)| *at).into_iter().chain(settles).min()
    }
}

impl Node {
    /// A port of a service has a member from now on; `adopted`: so the kernel has it from a former agent.
    pub(crate) fn member_came(
        &mut self,
        service: &ServiceName,
        (address, port): (Ipv4Addr, u16),
        adopted: Option<BackendState>,
    ) {
        if let Some(state) = adopted {
            self.health.adopted.insert((address, service.clone(), port), state);
        }
        if adopted.is_none() {
            self.hold_member(service, address);
        }
        let members = self.health.members.entry(address).or_default();
        *members.entry((service.clone(), port)).or_default() += 1;
        self.health.touch(service, address);
    }

    /// A port of a service has this member no more.
    pub(crate) fn member_went(&mut self, service: &ServiceName, (address, port): (Ipv4Addr, u16)) {
        let member = (service.clone(), port);
        if let Some(members) = self.health.members.get_mut(&address)
            && let Some(count) = members.get_mut(&member)
        {
            *count -= 1;
            if *count == 0 {
                members.remove(&member);
                self.health.adopted.remove(&(address, service.clone(), port));
            }
            if members.is_empty() {
                self.health.members.remove(&address);
            }
        }
        self.health.touch(service, address);
    }

    /// What is asked of a member may have changed.
    pub(crate) fn member_touched(&mut self, service: &ServiceName, (address, _): (Ipv4Addr, u16)) {
        self.health.touch(service, address);
    }

    /// Brings everything touched up to date. O(touched · log n).
    pub(crate) fn refresh_health(&mut self) {
        self.choose_checkers_again();
        while let Some((service, address)) = self.health.touched.pop_first() {
            self.refresh_checks(&service, address);
            for port in self.health.ports(&service, address) {
                self.restate_member(&service, (address, port));
            }
        }
    }

    /// What a member of a service may get, and if it is less than new flows, why.
    pub(crate) fn member_state(
        &self,
        service: &ServiceName,
        (address, port): (Ipv4Addr, u16),
    ) -> (BackendState, Option<String>) {
        if self.health.terminating.contains(&address) {
            return (BackendState::Terminating, Some("drained".to_owned()));
        }
        let owner = self.peers.owner_of_ip(address.into());
        if let Some(node) = owner.filter(|node| self.is_dead(node)) {
            return (BackendState::Unhealthy, Some(format!("node {node} does not answer")));
        }
        if self.health.held.contains(&address) && self.is_checked(service) {
            return (BackendState::Unhealthy, Some("its node has not told of it yet".to_owned()));
        }
        let member = (address, service.clone(), port);
        let adopted = self.health.adopted.get(&member) == Some(&BackendState::Unhealthy);
        let unwell = match self.checkers(owner, service, (address, port)) {
            // Before this agent's start somebody knew better.
            Some(checkers) if adopted && !checkers.iter().any(|node| self.has_answered(node)) => {
                Some("it was so before this agent's start, and nobody has told better yet".to_owned())
            }
            Some(checkers) => self.unwell(owner, checkers, service, (address, port)),
            None => None,
        };
        match unwell {
            Some(why) => (BackendState::Unhealthy, Some(why)),
            None => (BackendState::Active, None),
        }
    }

    fn is_checked(&self, service: &ServiceName) -> bool {
        self.view.services().get(service).is_some_and(|entry| entry.record.spec.health_check.is_some())
    }

    fn asked_port(&self, service: &ServiceName, port: u16) -> Option<u16> {
        let check = self.view.services().get(service)?.record.spec.health_check.as_ref()?;
        Some(check.port.unwrap_or(port))
    }

    /// The nodes whose word counts on a member: that which it is on, or those that were chosen.
    fn checkers<'a>(
        &'a self,
        owner: Option<&'a NodeName>,
        service: &ServiceName,
        (address, port): (Ipv4Addr, u16),
    ) -> Option<&'a [NodeName]> {
        match owner {
            Some(owner) => Some(std::slice::from_ref(owner)),
            None => {
                let asked = self.asked_port(service, port)?;
                Some(&self.health.outside.get(&(address, asked))?.checkers)
            }
        }
    }

    /// Why a member is not well, by those who check it.
    fn unwell(
        &self,
        owner: Option<&NodeName>,
        checkers: &[NodeName],
        service: &ServiceName,
        (address, port): (Ipv4Addr, u16),
    ) -> Option<String> {
        let key = CheckKey { service: service.clone(), address, port: self.asked_port(service, port)? };
        let says = |node: &NodeName| {
            if *node == self.config.node {
                return match self.health.checks.get(&key) {
                    Some(check) => check.unwell(),
                    None => owner.map(|_| "not attached yet"),
                };
            }
            self.health.told.get(&key)?.get(node).map(String::as_str)
        };
        let votes: Vec<_> = checkers.iter().filter_map(|node| Some((node, says(node)?))).collect();
        let (node, why) = votes.first()?;
        checkers::is_majority(votes.len(), checkers.len()).then(|| match owner {
            Some(_) => (*why).to_owned(),
            None => format!("{why} ({node} and others, {} of {})", votes.len(), checkers.len()),
        })
    }

    /// Whether an endpoint is on its way out.
    pub(crate) fn note_terminating(&mut self, address: IpAddr, terminating: bool) {
        let Some(address) = v4(address) else { return };
        let changed = match terminating {
            true => self.health.terminating.insert(address),
            false => self.health.terminating.remove(&address),
        };
        if changed {
            self.health.touch_range(address, address);
        }
    }

    /// An endpoint of this node is in the kernel now: it can be asked.
    pub(crate) fn note_attached(&mut self, address: IpAddr) {
        if let Some(address) = v4(address) {
            self.health.touch_range(address, address);
        }
    }

    /// Everything is to be looked at again.
    pub(crate) fn touch_all_members(&mut self) {
        self.health.touch_range(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    }
}

/// The programs have no table for IPv6.
fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
