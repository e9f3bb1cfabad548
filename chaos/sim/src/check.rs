//! What must hold after every step, and what must hold once the fleet is quiet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use datapath_plan::NodeIndex;
use identity::{Identity, LabelDigest};
use ipnetwork::IpNetwork;
use kvstore_claims::FleetView;
use kvstore_schema::record::ClaimState;

use crate::Sim;

/// The store as it is, decoded.
pub fn view(sim: &Sim) -> FleetView {
    let mut view = FleetView::new(sim.schema());
    let page = sim.store.list(&sim.schema().root(), None, None, usize::MAX).expect("now is never compacted");
    view.apply_list(&page);
    view
}

/// P3: no two live claims overlap, no address is in two kernels, no label set has two numbers, no number two
/// label sets; and whatever a kernel holds as an endpoint lies in a claim of that node.
pub fn p3(sim: &Sim) {
    let view = view(sim);
    let claims: Vec<(IpNetwork, &str)> = (view.cidrs().iter())
        .filter(|(_, claim)| claim.record.state == ClaimState::Live)
        .map(|(cidr, claim)| (*cidr, claim.record.node.as_str()))
        .collect();
    for pair in claims.windows(2) {
        assert!(!pair[0].0.contains(pair[1].0.network()), "claims overlap: {pair:?}");
    }
    let mut digests: BTreeMap<LabelDigest, Identity> = BTreeMap::new();
    for (identity, entry) in view.identities() {
        if let Some(other) = digests.insert(entry.record.labels.digest(), *identity) {
            panic!("one label set has the numbers {other} and {identity}");
        }
    }
    let mut addresses: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for agent in &sim.agents {
        for endpoint in agent.kernel.tables().endpoints.values() {
            let node = agent.config.node.as_str();
            if let Some(other) = addresses.insert(endpoint.address, node) {
                panic!("{} is an endpoint on {other} and on {node}", endpoint.address);
            }
        }
    }
}

/// Once the fleet is quiet: each kernel is as its node wants, the store has every endpoint, and every kernel
/// knows every endpoint with its identity, behind the right node, and no other.
pub fn converged(sim: &Sim) {
    let view = view(sim);
    let kernels = sim.agents.iter().flat_map(|agent| agent.kernel.tables().endpoints.values());
    let attached: BTreeSet<IpAddr> = kernels.map(|endpoint| endpoint.address).collect();
    for agent in &sim.agents {
        let Some(node) = &agent.node else { continue };
        let me = agent.config.node.as_str();
        let status = node.status();
        assert_eq!((status.plan.dirty, status.plan.in_flight), (0, false), "{me}: {status:#?}");
        assert_eq!(status.store.writes_queued, 0, "{me}: {status:#?}");
        let kernel = agent.kernel.observe().tables;
        let mut wanted = node.wanted().clone();
        wanted.endpoints.values_mut().for_each(|endpoint| endpoint.attachment = None);
        assert_eq!(kernel, wanted, "{me}");
        for (prefix, entry) in kernel.ipcache.iter().filter(|(_, entry)| entry.identity.is_fleet()) {
            assert!(
                attached.contains(&prefix.ip()),
                "{me} knows {prefix} as {entry:?}, which is no endpoint"
            );
        }
        for other in &sim.agents {
            for endpoint in other.kernel.tables().endpoints.values() {
                let entry = kernel.ipcache.get(&IpNetwork::from(endpoint.address));
                let Some(entry) = entry else { panic!("{me} does not know {}", endpoint.address) };
                assert_eq!(entry.identity, endpoint.identity, "{me}: {}", endpoint.address);
                if other.config.node == agent.config.node {
                    assert_eq!(entry.node, NodeIndex::SELF);
                } else {
                    let underlay = kernel.nodes[&entry.node].underlay;
                    assert_eq!(underlay, other.config.underlay.addresses[0], "{me}: {}", endpoint.address);
                }
                let record = view.endpoint_at(endpoint.address);
                let Some((owner, record)) = record else { panic!("{} is not recorded", endpoint.address) };
                assert_eq!((owner, record.record.identity), (&other.config.node, endpoint.identity));
                assert!(view.refs(endpoint.identity).contains_key(owner), "no reference of {owner}");
            }
        }
    }
    assert_eq!(view.endpoint_count(), attached.len(), "records of endpoints that are not there");
}
