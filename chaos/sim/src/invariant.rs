//! What must hold after every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use datapath_plan::Tables;
use identity::{Identity, LabelDigest, NodeName};
use ipnetwork::IpNetwork;
use kvstore_claims::FleetView;
use kvstore_schema::record::ClaimState;
use node_core::{EndpointState, Node};

use crate::agent::Agent;

/// What always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// P3: no block, address or identity has two owners, in the store or in what nodes believe.
    OneOwner,
    /// P3: what was released has its quarantine before it is used again.
    Rest,
    /// P6: an entry of a living workload leaves no kernel.
    NothingCut,
    /// The revision up to which a node knows the store never decreases.
    Monotone,
    /// Computing by changes equals computing anew.
    IncrementalIsFull,
    /// An agent that starts on a kernel which is as wanted changes nothing there.
    RestartIsNothing,
    /// The answer to a call is true.
    Answered,
    /// Replaying a log of events leads to the same commands.
    ReplayIsLife,
    /// A fleet without further faults converges to what its store says.
    Converges,
    /// Nothing panics, and every call is answered once.
    Sound,
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// Where, and what was found.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.text)
    }
}

/// The result of a check.
pub type Checked = Result<(), Violation>;

impl Invariant {
    pub(crate) fn broken(self, text: String) -> Violation {
        Violation { invariant: self, text }
    }

    pub(crate) fn holds(self, holds: bool, text: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(self.broken(text())) }
    }
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

/// What a node wants equals what it wants when everything is computed anew.
pub(crate) fn incremental_is_full(node: &Node) -> Checked {
    let anew = node.wanted_anew();
    Invariant::IncrementalIsFull.holds(anew == *node.wanted(), || {
        format!("{}: {}", node.status().node, difference(node.wanted(), &anew))
    })
}

/// The differences of two sets of tables, in words.
pub(crate) fn difference(wanted: &Tables, found: &Tables) -> String {
    let keys: BTreeSet<_> = wanted.keys().into_iter().chain(found.keys()).collect();
    let lines = keys.into_iter().filter_map(|key| {
        let (want, have) = (wanted.get(&key), found.get(&key));
        (want != have).then(|| format!("{key}: {want:?} against {have:?}"))
    });
    lines.take(5).collect::<Vec<_>>().join("; ")
}
