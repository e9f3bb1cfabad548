//! What this node gossips of itself.

use datapath_plan::Generation;
use node_facts::{CidrFact, NodeFacts, NodeHealth};

use crate::{context::Context, fleet::Fleet, health::Health, ipam::Ipam, routing::Routing};

/// This node's facts, except the pending endpoint changes (`records`). `None` before this node is a member.
pub(crate) fn facts(
    cx: &Context,
    fleet: &Fleet,
    routing: &Routing,
    ipam: &Ipam,
    health: &Health,
) -> Option<NodeFacts> {
    let fleet_id = fleet.fleet_id().filter(|_| fleet.is_member(cx.startup))?;
    let Generation(applied_generation) = cx.kernel.generations().1;
    let problem = fleet.halted().or(fleet.suspect());
    Some(NodeFacts {
        fleet_id: fleet_id.to_owned(),
        node: fleet.node().clone(),
        incarnation: fleet.incarnation(&cx.config),
        underlay: routing.addresses().to_vec(),
        moves: routing.moves(),
        gateway: ipam.gateway(),
        cidrs: ipam
            .own()
            .iter()
            .map(|(cidr, epoch)| CidrFact { cidr: *cidr, life: epoch.life, epoch: epoch.revision.0 })
            .collect(),
        applied_generation,
        health: problem.map_or(NodeHealth::Ok, |reason| NodeHealth::degraded(reason)),
        recorded_life: fleet.seen().life,
        recorded_revision: fleet.seen().revision.0,
        cut_off: !fleet.is_connected(),
        pending: Vec::new(),
        unwell: health.reports(),
    })
}
