//! When a snapshot is made, and of what.

use std::{collections::BTreeMap, time::Duration};

use identity::{Identity, Labels};
use kvstore_schema::record::ClaimState;
use serde::{Deserialize, Serialize};

use super::{SavedCidr, SavedIdentity, SavedNode, SavedRecord, Snapshot};
use crate::{
    Command,
    changes::Changes,
    context::Context,
    fleet::{Fleet, Own},
    identities::Identities,
    limits::{PERSIST_FLEET_PAUSE, PERSIST_OWN_PAUSE_EACH},
};

/// When the last snapshot was made. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Snapshots {
    saved_at: Option<Duration>,
    /// The pause before the next one if this node's endpoints, blocks or services change.
    own_pause: Duration,
}

impl Snapshots {
    /// When the next snapshot is due; `None` while nothing changes.
    pub(crate) fn next_wake(&self, changes: &Changes) -> Option<Duration> {
        let pause = if changes.own_state {
            self.own_pause
        } else if changes.fleet_state {
            PERSIST_FLEET_PAUSE
        } else {
            return None;
        };
        Some(self.saved_at.map_or(Duration::ZERO, |at| at + pause))
    }

    /// Has a snapshot saved when one is due.
    pub(crate) fn pursue(&mut self, cx: &mut Context, fleet: &Fleet, own: Own<'_>, identities: &Identities) {
        if self.next_wake(&cx.changes).is_none_or(|at| at > cx.now.monotonic) {
            return;
        }
        let Some(snapshot) = Snapshot::make(cx, fleet, own, identities) else { return };
        cx.changes.own_state = false;
        cx.changes.fleet_state = false;
        self.saved_at = Some(cx.now.monotonic);
        let size = fleet.view().endpoint_count() + fleet.view().services().len();
        self.own_pause = PERSIST_OWN_PAUSE_EACH * u32::try_from(size).unwrap_or(u32::MAX);
        cx.command(Command::Persist(Box::new(snapshot)));
    }
}

impl Snapshot {
    /// All that the next agent may need. O(fleet). `None` before the kernel has been read and this node is a member: the
    /// former snapshot is better.
    pub(crate) fn make(cx: &Context, fleet: &Fleet, own: Own<'_>, identities: &Identities) -> Option<Self> {
        if !cx.startup.kernel_read || !fleet.is_member(cx.startup) {
            return None;
        }
        let (config, view, me) = (&cx.config, fleet.view(), fleet.node());
        // What this node owns it knows better than the store, which may have lost it.
        let record = fleet.wanted_record(config, own);
        let others = view.nodes().iter().filter(|(name, _)| *name != me);
        let nodes = others.map(|(name, entry)| (name, &entry.record)).chain([(me, &record)]);
        let nodes = nodes.map(|(name, record)| SavedNode {
            name: name.clone(),
            underlay: record.underlay.clone(),
            gateway: record.gateway,
            gossip_port: record.gossip_port,
            labels: record.labels.clone(),
            machine_id: record.machine_id.clone(),
            incarnation: record.incarnation,
            agent_version: record.agent_version.clone(),
        });
        let lost = own.blocks.iter().filter(|(cidr, _)| !view.cidrs().contains_key(cidr));
        let lost = lost.map(|(cidr, since)| SavedCidr {
            cidr: *cidr,
            node: me.clone(),
            state: ClaimState::Live,
            epoch: since.revision,
            since: Some(*since),
        });
        let cidrs = view.cidrs().iter().map(|(cidr, claim)| SavedCidr {
            cidr: *cidr,
            node: claim.record.node.clone(),
            state: claim.record.state,
            epoch: claim.created,
            since: claim.record.since,
        });
        let records = view.endpoints().iter().map(|(node, records)| {
            let saved = records.iter().map(|(ip, entry)| SavedRecord {
                address: *ip,
                identity: entry.record.identity,
                name: entry.record.name.clone(),
                terminating: entry.record.terminating,
            });
            (node.clone(), saved.collect())
        });
        let services = view.services().iter().map(|(name, entry)| (name.clone(), entry.record.clone()));
        Some(Self {
            fleet: config.fleet.clone(),
            fleet_id: fleet.fleet_id()?.to_owned(),
            node: me.clone(),
            machine_id: config.machine_id.clone(),
            store: view.store()?,
            life: view.life(),
            revision: view.revision(),
            mark: view.mark().map(|entry| (entry.record.clone(), entry.modified)),
            heard_at: fleet.heard_at().unwrap_or_default(),
            nodes: nodes.collect(),
            cidrs: cidrs.chain(lost).collect(),
            identities: saved_identities(fleet, identities),
            records: records.collect(),
            services: services.collect(),
        })
    }
}

/// Live identities of the view, and those granted to this node that the view does not show yet.
fn saved_identities(fleet: &Fleet, identities: &Identities) -> Vec<SavedIdentity> {
    let view = fleet.view();
    let live = view.identities().iter().filter(|(_, entry)| entry.record.state == ClaimState::Live);
    let mut saved: BTreeMap<Identity, (&Labels, bool)> = live
        .map(|(id, entry)| (*id, (&entry.record.labels, view.refs(*id).contains_key(fleet.node()))))
        .collect();
    saved.extend(identities.referenced().map(|(id, labels)| (id, (labels, true))));
    saved
        .into_iter()
        .map(|(id, (labels, referenced))| SavedIdentity { id, labels: labels.clone(), referenced })
        .collect()
}
