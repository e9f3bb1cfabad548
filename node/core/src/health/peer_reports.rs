//! Gossip about backends: what this node reports, and what other nodes do.

use std::net::{IpAddr, Ipv4Addr};

use identity::{NodeName, ServiceName};
use kvstore_schema::{Revision, record::ClaimEpoch};
use node_facts::{Liveness, MAX_UNWELL, NodeFacts, Unwell};

use super::{CheckKey, Health, checks::Due, health_check, v4};
use crate::{context::Context, fleet::Fleet, ipcache::Sources, limits::MEMBER_HELD, peers::Peers};

impl Health {
    /// The checks of this node that fail, for gossip; as many as gossip carries.
    pub(crate) fn reports(&self) -> Vec<Unwell> {
        let failing = self.failing.iter().take(MAX_UNWELL);
        let report = |key: &CheckKey| {
            let why = self.checks.get(key)?.failing()?.to_owned();
            Some(Unwell { service: key.service.clone(), address: key.address.into(), port: key.port, why })
        };
        failing.filter_map(report).collect()
    }

    /// Whether there is more to report than gossip carries.
    pub(crate) fn warning(&self) -> Option<String> {
        let count = self.failing.len();
        (count > MAX_UNWELL).then(|| {
            format!(
                "{count} backends that this node checks are unhealthy, of which it can report {MAX_UNWELL} to the other nodes: the \
                 others count as healthy there"
            )
        })
    }

    /// A member of a checked service is new on another node. Its record may arrive before the facts that report its
    /// health: it is held back until then, if its node seems alive.
    pub(super) fn hold(
        &mut self,
        cx: &Context,
        sources: Sources<'_>,
        service: &ServiceName,
        address: Ipv4Addr,
    ) {
        let Sources { fleet, peers, .. } = sources;
        let Some(owner) = peers.owner_of_ip(address.into()) else { return };
        let alive = peers.liveness_of(owner) == Some(Liveness::Alive);
        let checked = health_check(fleet, service).is_some();
        if owner == fleet.node() || !alive || !checked || reports_on(fleet, peers, owner, address) {
            return;
        }
        if self.held.insert(address) {
            self.due.insert((cx.now.monotonic + MEMBER_HELD, Due::Held(address)));
        }
    }

    /// A member is held back no longer.
    pub(super) fn release(&mut self, address: Ipv4Addr) {
        if self.held.remove(&address) {
            self.touch_range(address, address);
        }
    }

    /// Takes in what a node reports now, in place of what it reported before.
    pub(crate) fn on_reports(
        &mut self,
        fleet: &Fleet,
        peers: &Peers,
        before: Option<&NodeFacts>,
        facts: &NodeFacts,
    ) {
        let node = &facts.node;
        let is_reported = |address: &&Ipv4Addr| {
            peers.owner_of_ip(IpAddr::from(**address)) == Some(node)
                && reports_on(fleet, peers, node, **address)
        };
        let reported: Vec<Ipv4Addr> = self.held.iter().filter(is_reported).copied().collect();
        reported.into_iter().for_each(|address| self.release(address));
        if before.is_none() {
            // Until now the states from before this agent's start counted.
            self.touch_members_of(peers, node);
            let external = self.external.iter().filter(|(_, external)| external.checkers.contains(node));
            self.touched.extend(external.flat_map(|((address, _), external)| {
                external.services.iter().map(|service| (service.clone(), *address))
            }));
        }
        let before = before.map(|facts| &facts.unwell[..]).unwrap_or_default();
        if before != facts.unwell {
            self.replace_reports(node, before, &facts.unwell);
        }
    }

    /// An operator has removed a node: what it reported does not count any more.
    pub(crate) fn forget_reports(&mut self, facts: &NodeFacts) {
        self.replace_reports(&facts.node, &facts.unwell, &[]);
    }

    fn replace_reports(&mut self, node: &NodeName, before: &[Unwell], now: &[Unwell]) {
        for report in before {
            let Some(key) = key(report) else { continue };
            if let Some(reports) = self.peer_reports.get_mut(&key) {
                reports.remove(node);
                if reports.is_empty() {
                    self.peer_reports.remove(&key);
                }
            }
            self.touch(&key.service, key.address);
        }
        for report in now {
            let Some(key) = key(report) else { continue };
            self.touch(&key.service, key.address);
            self.peer_reports.entry(key).or_default().insert(node.clone(), report.why.clone());
        }
    }

    /// Touches all members on a node.
    pub(super) fn touch_members_of(&mut self, peers: &Peers, node: &NodeName) {
        peers.owned_by(node).for_each(|block| self.touch_block(block));
    }

    /// Whether a node has reported or answered anything since this agent's start.
    pub(super) fn has_answered(&self, Sources { fleet, peers, .. }: Sources<'_>, node: &NodeName) -> bool {
        node == fleet.node()
            || peers.facts_of(node).is_some()
            || self.silent.get(node).is_some_and(|liveness| liveness.answered)
    }
}

/// Whether a node's facts are as new as what is known of its endpoint.
fn reports_on(fleet: &Fleet, peers: &Peers, node: &NodeName, address: Ipv4Addr) -> bool {
    let Some(facts) = peers.facts_of(node) else { return false };
    let address = IpAddr::from(address);
    let recorded = ClaimEpoch { life: facts.recorded_life, revision: Revision(facts.recorded_revision) };
    let modified = fleet.record(node, address).map(|entry| entry.modified);
    let modified = modified.map(|revision| ClaimEpoch { life: fleet.view().life().number, revision });
    facts.pending.iter().any(|change| change.ip == address)
        || modified.is_some_and(|modified| modified <= recorded)
}

fn key(report: &Unwell) -> Option<CheckKey> {
    let address: Ipv4Addr = v4(report.address)?;
    Some(CheckKey { service: report.service.clone(), address, port: report.port })
}
