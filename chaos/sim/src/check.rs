//! What must hold once the fleet is quiet.

use std::{collections::BTreeSet, net::IpAddr};

use datapath_plan::{NodeIndex, Tables};
use ipnetwork::IpNetwork;
use kvstore_claims::FleetView;

use crate::{
    Sim,
    agent::Agent,
    invariant::{Checked, Invariant, difference},
};

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
    let view = sim.store_view();
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
