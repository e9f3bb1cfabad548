//! What must hold after every step, and what must hold once the fleet is quiet.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use datapath_plan::{NodeIndex, Tables};
use identity::{Identity, LabelDigest, NodeName};
use ipnetwork::IpNetwork;
use kvstore_claims::FleetView;
use kvstore_schema::record::ClaimState;
use node_core::{EndpointState, Node};

use crate::{Sim, agent::Agent};

/// What is always so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// P3: no block, address or number has two owners, in the store or in what nodes believe.
    OneOwner,
    /// P3: what was given back rests before it is anybody else's.
    Rest,
    /// P6: what lives leaves no kernel.
    NothingCut,
    /// A node never goes back behind a revision of the store.
    Monotone,
    /// What is computed from changes is what is computed from everything.
    IncrementalIsFull,
    /// An agent that starts on a kernel that is as wanted has nothing to do there.
    RestartIsNothing,
    /// What a call was answered is so.
    Answered,
    /// A log of events leads to the commands that they led to in life.
    ReplayIsLife,
    /// A fleet that is let alone comes to be as its store says.
    Converges,
    /// Nothing panics, and every call is answered once.
    Sound,
}

/// One that is not so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// Who and what.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.text)
    }
}

/// What a check says.
pub type Checked = Result<(), Violation>;

impl Invariant {
    pub(crate) fn broken(self, text: String) -> Violation {
        Violation { invariant: self, text }
    }

    fn holds(self, holds: bool, text: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(self.broken(text())) }
    }
}

/// The store as it is, decoded.
pub fn view(sim: &Sim) -> FleetView {
    let mut view = FleetView::new(sim.schema());
    let page = sim.store.list(&sim.schema().root(), None, None, usize::MAX).expect("now is never compacted");
    view.apply_list(page);
    view
}

/// P3 in the store: no two live claims overlap, no label set has two numbers, and no record lies in a block that is
/// another node's.
pub(crate) fn one_owner_in_store(view: &FleetView) -> Checked {
    let claims: Vec<(IpNetwork, &str)> = (view.cidrs().iter())
        .filter(|(_, claim)| claim.record.state == ClaimState::Live)
        .map(|(cidr, claim)| (*cidr, claim.record.node.as_str()))
        .collect();
    for pair in claims.windows(2) {
        Invariant::OneOwner
            .holds(!pair[0].0.contains(pair[1].0.network()), || format!("claims overlap: {pair:?}"))?;
    }
    let mut digests: BTreeMap<LabelDigest, Identity> = BTreeMap::new();
    for (identity, entry) in view.identities() {
        if let Some(other) = digests.insert(entry.record.labels.digest(), *identity) {
            let text = format!("one label set has the numbers {other} and {identity}");
            return Err(Invariant::OneOwner.broken(text));
        }
    }
    let registered = |node: &NodeName| view.nodes().contains_key(node);
    for (node, records) in view.endpoints().iter().filter(|(node, _)| registered(node)) {
        for ip in records.keys() {
            let owner = view.cidr_of_ip(*ip).map(|(_, claim)| &claim.record.node);
            Invariant::OneOwner.holds(owner.is_none_or(|owner| owner == node), || {
                format!("a record of {node} for {ip}, which is {owner:?}'s")
            })?;
        }
    }
    Ok(())
}

/// P3 in what nodes believe: no address is in two kernels, no block is two nodes' own, no number means two things, and no
/// label set has two numbers. `given_up`: whether the store has another number for the labels of this one since a while ago,
/// which nodes that bear it hear of one after the other.
pub(crate) fn one_owner_among_nodes(agents: &[Agent], given_up: impl Fn(Identity) -> bool) -> Checked {
    let mut addresses: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut numbers: BTreeMap<Identity, String> = BTreeMap::new();
    let mut labels: BTreeMap<String, Identity> = BTreeMap::new();
    let mut blocks: BTreeMap<IpNetwork, &str> = BTreeMap::new();
    for agent in agents {
        let me = agent.config.node.as_str();
        for endpoint in agent.kernel.tables().endpoints.values() {
            if let Some(other) = addresses.insert(endpoint.address, me) {
                let text = format!("{} is an endpoint on {other} and on {me}", endpoint.address);
                return Err(Invariant::OneOwner.broken(text));
            }
        }
        let Some(node) = &agent.node else { continue };
        for cidr in node.blocks() {
            if let Some(other) = blocks.insert(cidr, me) {
                let text = format!("{cidr} is {other}'s and {me}'s, they believe");
                return Err(Invariant::OneOwner.broken(text));
            }
        }
        for endpoint in node.endpoints() {
            let (Some(identity), EndpointState::Ready) = (endpoint.identity, endpoint.state) else {
                continue;
            };
            let text = endpoint.labels.to_string();
            // One whose record has not come yet is known by its device alone.
            if text.is_empty() {
                continue;
            }
            let other = numbers.insert(identity, text.clone());
            Invariant::OneOwner.holds(other.as_ref().is_none_or(|other| *other == text), || {
                format!("identity {identity} means {text} on {me}, elsewhere {other:?}")
            })?;
            let other = labels.insert(text.clone(), identity);
            let known = |other| other == identity || given_up(other) || given_up(identity);
            Invariant::OneOwner.holds(other.is_none_or(known), || {
                format!("{text} has identity {identity} on {me}, elsewhere {other:?}")
            })?;
        }
    }
    Ok(())
}

/// Computed anew from everything, a node wants what it wants.
pub(crate) fn incremental_is_full(node: &Node) -> Checked {
    let anew = node.wanted_anew();
    Invariant::IncrementalIsFull.holds(anew == *node.wanted(), || {
        format!("{}: {}", node.status().node, difference(node.wanted(), &anew))
    })
}

/// A fork of a quiet fleet, in which one agent starts anew and hears nothing of anybody: not one step in its kernel.
pub(crate) fn restart_is_nothing(sim: &Sim, n: usize) -> Checked {
    let mut fork = sim.clone();
    let before = fork.agents[n - 1].kernel.clone();
    fork.gossip = false;
    fork.agents.iter_mut().for_each(|agent| agent.log = None);
    fork.agent(n).store_up = false;
    fork.restart(n);
    fork.quiet()?;
    let after = &fork.agents[n - 1].kernel;
    let kept = after.tables() == before.tables() && after.steps().1 == before.steps().1;
    Invariant::RestartIsNothing
        .holds(kept, || format!("n{n}: {}", difference(before.tables(), after.tables())))
}

/// Once the fleet is quiet: each kernel is as its node wants, the store has every endpoint, and every kernel knows
/// every endpoint with its identity, behind the right node, and no other; and nobody gossips what the store knows.
pub fn converged(sim: &Sim) {
    if let Err(violation) = try_converged(sim) {
        panic!("{violation}");
    }
}

/// As [`converged`], without a panic.
pub(crate) fn try_converged(sim: &Sim) -> Checked {
    let view = view(sim);
    let wrong = |text: String| Err(Invariant::Converges.broken(text));
    let kernels = sim.agents.iter().flat_map(|agent| agent.kernel.tables().endpoints.values());
    let attached: BTreeSet<IpAddr> = kernels.map(|endpoint| endpoint.address).collect();
    for agent in &sim.agents {
        let Some(node) = &agent.node else { continue };
        let me = agent.config.node.as_str();
        let status = node.status();
        if status.plan.dirty > 0 || status.plan.in_flight || status.store.writes_queued > 0 {
            return wrong(format!("{me}: {status:#?}"));
        }
        let kernel = agent.kernel.observe().tables;
        let mut wanted = node.wanted().clone();
        wanted.endpoints.values_mut().for_each(|endpoint| endpoint.attachment = None);
        if kernel != wanted {
            let difference = difference(&wanted, &kernel);
            return wrong(format!("{me}: the kernel is not as wanted: {difference}; {status:#?}"));
        }
        for (prefix, entry) in kernel.ipcache.iter().filter(|(_, entry)| entry.identity.is_fleet()) {
            if !attached.contains(&prefix.ip()) {
                return wrong(format!("{me} knows {prefix} as {entry:?}, which is no endpoint"));
            }
        }
        for other in &sim.agents {
            known_to(sim, &view, (me, &kernel), agent, other)?;
        }
    }
    if view.endpoint_count() != attached.len() {
        return wrong(format!("{} records of {} endpoints", view.endpoint_count(), attached.len()));
    }
    match sim.links.pending() {
        Some((node, count)) => wrong(format!("{node} still gossips {count} changes that the store has")),
        None => Ok(()),
    }
}

/// Every endpoint of `other` is known to a node, and to the store.
fn known_to(
    sim: &Sim,
    view: &FleetView,
    (me, kernel): (&str, &Tables),
    agent: &Agent,
    other: &Agent,
) -> Checked {
    let wrong = |text: String| Err(Invariant::Converges.broken(text));
    for endpoint in other.kernel.tables().endpoints.values() {
        let address = endpoint.address;
        let Some(entry) = kernel.ipcache.get(&IpNetwork::from(address)) else {
            return wrong(format!("{me} does not know {address} of {}", other.config.node));
        };
        let way = if other.config.node == agent.config.node {
            entry.node == NodeIndex::SELF
        } else {
            kernel
                .nodes
                .get(&entry.node)
                .is_some_and(|node| node.underlay == other.config.underlay.addresses[0])
        };
        if entry.identity != endpoint.identity || !way {
            return wrong(format!("{me} knows {address} of {} as {entry:?}", other.config.node));
        }
        match view.endpoint_at(address) {
            Some((owner, record))
                if (owner, record.record.identity) == (&other.config.node, endpoint.identity) =>
            {
                if !view.refs(endpoint.identity).contains_key(owner) {
                    return wrong(format!("no reference of {owner} to {}", endpoint.identity));
                }
            }
            found => return wrong(format!("{address} is recorded as {found:?} ({:?})", sim.now)),
        }
    }
    Ok(())
}

/// What two sets of tables differ in, in words.
fn difference(wanted: &Tables, found: &Tables) -> String {
    let keys: BTreeSet<_> = wanted.keys().into_iter().chain(found.keys()).collect();
    let lines = keys.into_iter().filter_map(|key| {
        let (want, have) = (wanted.get(&key), found.get(&key));
        (want != have).then(|| format!("{key}: {want:?} against {have:?}"))
    });
    lines.take(5).collect::<Vec<_>>().join("; ")
}
