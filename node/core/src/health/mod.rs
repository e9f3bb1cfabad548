//! Which backends may get new flows: the results of their checks, the liveness of their node, and whether they are drained.
//!
//! A backend that is an endpoint is checked by its own node; an external one by a few nodes, which all nodes choose alike.
//! The checkers gossip which backends are unhealthy, and nothing else. Nothing here removes a backend: existing flows go
//! on (P6), and where all backends are unhealthy, all are used.

mod check;
mod checkers;
mod checks;
mod node_liveness;
mod peer_reports;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use datapath_plan::BackendState;
use identity::{NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::service::HealthCheck;
use serde::{Deserialize, Serialize};

use self::{check::Check, checks::Due, node_liveness::NodeLiveness};
use crate::{
    ProbeId,
    changes::{MemberChange, MemberChangeKind},
    context::Context,
    fleet::Fleet,
    ipcache::{Sources, v4},
    limits::GOSSIP_SETTLED,
};

/// What a check is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct CheckKey {
    service: ServiceName,
    address: Ipv4Addr,
    /// The port that is probed.
    port: u16,
}

/// The health of all backends. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Health {
    /// Members of services, by address: how many ports of the service have each.
    members: BTreeMap<Ipv4Addr, BTreeMap<(ServiceName, u16), u32>>,
    /// The state of members in the kernel at the start, until a checker reports.
    adopted: BTreeMap<(Ipv4Addr, ServiceName, u16), BackendState>,
    /// Members whose checks and state are to be computed again.
    touched: BTreeSet<(ServiceName, Ipv4Addr)>,
    /// Endpoints that are drained.
    terminating: BTreeSet<Ipv4Addr>,
    /// The checks that this node makes, and those of them that fail.
    checks: BTreeMap<CheckKey, Check>,
    failing: BTreeSet<CheckKey>,
    /// The checks that fail on other nodes, and why.
    peer_reports: BTreeMap<CheckKey, BTreeMap<NodeName, String>>,
    /// External addresses that are checked: by which nodes, and for which services.
    external: BTreeMap<(Ipv4Addr, u16), External>,
    /// Nodes that may be chosen to check external addresses: members that gossip does not call dead.
    eligible: BTreeSet<NodeName>,
    /// Whether `eligible` has changed since the last choice.
    choose_again: bool,
    /// Other nodes of which gossip hears nothing.
    silent: BTreeMap<NodeName, NodeLiveness>,
    /// New members on other nodes, held back until their nodes have reported on them.
    held: BTreeSet<Ipv4Addr>,
    /// When checks and echoes are due.
    due: BTreeSet<(Duration, Due)>,
    in_flight: BTreeMap<ProbeId, Due>,
    last_probe: u64,
    /// Whether a node that was never heard of counts as silent.
    settled: bool,
}

/// One external address and port.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct External {
    checkers: Vec<NodeName>,
    services: BTreeSet<ServiceName>,
}

/// The state of a member of a service, as it was computed.
pub(crate) struct MemberState {
    pub service: ServiceName,
    pub address: Ipv4Addr,
    pub port: u16,
    pub state: BackendState,
}

impl Health {
    /// At first only this node can check anything.
    pub(crate) fn new(own: &NodeName) -> Self {
        Self { eligible: [own.clone()].into(), ..Self::default() }
    }

    fn touch(&mut self, service: &ServiceName, address: Ipv4Addr) {
        self.touched.insert((service.clone(), address));
    }

    /// Touches all members with addresses from one to another.
    fn touch_range(&mut self, first: Ipv4Addr, last: Ipv4Addr) {
        for (address, members) in self.members.range(first..=last) {
            self.touched.extend(members.keys().map(|(service, _)| (service.clone(), *address)));
        }
    }

    /// Touches all members in a block.
    fn touch_block(&mut self, block: IpNetwork) {
        if let (IpAddr::V4(first), IpAddr::V4(last)) = (block.network(), block.broadcast()) {
            self.touch_range(first, last);
        }
    }

    /// Touches all members.
    pub(crate) fn touch_all(&mut self) {
        self.touch_range(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    }

    /// The ports of a service's members at an address.
    fn ports(&self, service: &ServiceName, address: Ipv4Addr) -> Vec<u16> {
        let range = (service.clone(), 0)..=(service.clone(), u16::MAX);
        let members = self.members.get(&address).into_iter().flat_map(|members| members.range(range.clone()));
        members.map(|((_, port), _)| *port).collect()
    }

    /// When a probe is due, or silence counts.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let settles = (!self.settled).then_some(GOSSIP_SETTLED);
        self.due.first().map(|(at, _)| *at).into_iter().chain(settles).min()
    }

    /// Takes in what has changed, and computes the states of the members concerned. O(changed · log n).
    pub(crate) fn refresh(
        &mut self,
        cx: &mut Context,
        sources: Sources<'_>,
        moved_blocks: &BTreeSet<IpNetwork>,
    ) -> Vec<MemberState> {
        moved_blocks.iter().for_each(|block| self.touch_block(*block));
        for address in std::mem::take(&mut cx.changes.attached).into_iter().filter_map(v4) {
            self.touch_range(address, address);
        }
        for change in std::mem::take(&mut cx.changes.members) {
            self.on_member(cx, sources, change);
        }
        self.choose_checkers_again();
        let mut states = Vec::new();
        while let Some((service, address)) = self.touched.pop_first() {
            self.refresh_checks(cx, sources, &service, address);
            for port in self.ports(&service, address) {
                let (state, _) = self.member_state(sources, &service, (address, port));
                states.push(MemberState { service: service.clone(), address, port, state });
            }
        }
        states
    }

    fn on_member(&mut self, cx: &Context, sources: Sources<'_>, change: MemberChange) {
        let MemberChange { service, address, port, kind } = change;
        self.touch(&service, address);
        match kind {
            MemberChangeKind::Touched => {}
            MemberChangeKind::Came { adopted } => {
                match adopted {
                    Some(state) => drop(self.adopted.insert((address, service.clone(), port), state)),
                    None => self.hold(cx, sources, &service, address),
                }
                let members = self.members.entry(address).or_default();
                *members.entry((service, port)).or_default() += 1;
            }
            MemberChangeKind::Went => {
                let Some(members) = self.members.get_mut(&address) else { return };
                let member = (service, port);
                let Some(count) = members.get_mut(&member) else { return };
                *count -= 1;
                if *count == 0 {
                    members.remove(&member);
                    if members.is_empty() {
                        self.members.remove(&address);
                    }
                    let (service, port) = member;
                    self.adopted.remove(&(address, service, port));
                }
            }
        }
    }

    /// The state of a member of a service, and why it is not active.
    pub(crate) fn member_state(
        &self,
        sources: Sources<'_>,
        service: &ServiceName,
        (address, port): (Ipv4Addr, u16),
    ) -> (BackendState, Option<String>) {
        if self.terminating.contains(&address) {
            return (BackendState::Terminating, Some("drained".to_owned()));
        }
        match self.why_unhealthy(sources, service, (address, port)) {
            Some(why) => (BackendState::Unhealthy, Some(why)),
            None => (BackendState::Active, None),
        }
    }

    fn why_unhealthy(
        &self,
        sources: Sources<'_>,
        service: &ServiceName,
        (address, port): (Ipv4Addr, u16),
    ) -> Option<String> {
        let owner = sources.peers.owner_of_ip(address.into());
        if let Some(node) = owner.filter(|node| self.is_dead(node)) {
            return Some(format!("node {node} does not answer"));
        }
        let check = health_check(sources.fleet, service);
        if check.is_some() && self.held.contains(&address) {
            return Some("its node has not reported on it yet".to_owned());
        }
        let key = check.map(|check| CheckKey {
            service: service.clone(),
            address,
            port: check.port.unwrap_or(port),
        });
        let checkers: &[NodeName] = match (owner, &key) {
            (Some(owner), _) => std::slice::from_ref(owner),
            (None, Some(key)) => &self.external.get(&(address, key.port))?.checkers,
            (None, None) => return None,
        };
        let adopted = self.adopted.get(&(address, service.clone(), port)) == Some(&BackendState::Unhealthy);
        if adopted && !checkers.iter().any(|node| self.has_answered(sources, node)) {
            return Some(
                "it was unhealthy before this agent's start, and no checker has reported yet".to_owned(),
            );
        }
        self.failing_check(sources.fleet, owner, checkers, &key?)
    }

    /// Why a check fails, if the majority of those who make it say so.
    fn failing_check(
        &self,
        fleet: &Fleet,
        owner: Option<&NodeName>,
        checkers: &[NodeName],
        key: &CheckKey,
    ) -> Option<String> {
        let says = |node: &NodeName| {
            if node == fleet.node() {
                return match self.checks.get(key) {
                    Some(check) => check.failing(),
                    None => owner.map(|_| "not attached yet"),
                };
            }
            self.peer_reports.get(key)?.get(node).map(String::as_str)
        };
        let votes: Vec<_> = checkers.iter().filter_map(|node| Some((node, says(node)?))).collect();
        let (node, why) = votes.first()?;
        checkers::is_majority(votes.len(), checkers.len()).then(|| match owner {
            Some(_) => (*why).to_owned(),
            None => format!("{why} ({node} and others, {} of {})", votes.len(), checkers.len()),
        })
    }

    /// Notes whether an endpoint is drained.
    pub(crate) fn set_terminating(&mut self, address: IpAddr, terminating: bool) {
        let Some(address) = v4(address) else { return };
        let changed = match terminating {
            true => self.terminating.insert(address),
            false => self.terminating.remove(&address),
        };
        if changed {
            self.touch_range(address, address);
        }
    }
}

/// The health check of a service.
fn health_check<'a>(fleet: &'a Fleet, service: &ServiceName) -> Option<&'a HealthCheck> {
    fleet.view().services().get(service)?.record.spec.health_check.as_deref()
}
