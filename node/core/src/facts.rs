//! What this node gossips of itself.

use datapath_plan::Generation;
use node_facts::{CidrFact, NodeFacts, NodeHealth};

use crate::{
    context::Context,
    fleet::{Fleet, Own},
    health::Health,
};

/// This node's facts, except the pending endpoint changes (`records`). `None` before this node is a member.
pub(crate) fn facts(cx: &Context, fleet: &Fleet, own: Own<'_>, health: &Health) -> Option<NodeFacts> {
    let fleet_id = fleet.fleet_id().filter(|_| fleet.is_member(cx.startup))?;
    let Generation(applied_generation) = cx.kernel.generations().1;
    let problem = fleet.halted().or(fleet.suspect());
    Some(NodeFacts {
        fleet_id: fleet_id.to_owned(),
        node: fleet.node().clone(),
        incarnation: fleet.incarnation(&cx.config),
        underlay: own.underlay.to_vec(),
        moves: own.moves,
        gateway: own.gateway,
        cidrs: own
            .blocks
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
