//! When a snapshot is made, and of what.

use std::{collections::BTreeMap, time::Duration};

use identity::{Identity, Labels};
use kvstore_schema::record::ClaimState;
use serde::{Deserialize, Serialize};

use super::{SavedCidr, SavedIdentity, SavedNode, SavedRecord, Snapshot};
use crate::{
    Command,
    limits::{PERSIST_FLEET_PAUSE, PERSIST_OWN_PAUSE_EACH},
    node::Node,
};

/// What has to be saved, and since when. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Snapshots {
    /// This agent began with a snapshot.
    pub restored: bool,
    /// Endpoints or blocks of this node, or services, changed since the last one.
    pub own_changed: bool,
    /// Anything else changed since the last one.
    pub fleet_changed: bool,
    saved_at: Option<Duration>,
    /// Until the next one if those change.
    own_pause: Duration,
}

impl Snapshots {
    /// When the next one is due; `None` while nothing changes.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let pause = if self.own_changed {
            self.own_pause
        } else if self.fleet_changed {
            PERSIST_FLEET_PAUSE
        } else {
            return None;
        };
        Some(self.saved_at.map_or(Duration::ZERO, |at| at + pause))
    }
}

impl Node {
    /// Has kept what has changed of this node's endpoints: before anything else that the event asks for.
    pub(crate) fn persist_endpoints(&mut self) -> Vec<Command> {
        let changed = std::mem::take(&mut self.endpoints.unsaved).into_iter();
        changed.map(|id| Command::PersistEndpoint(id, self.endpoints.saved(id).map(Box::new))).collect()
    }

    /// Has a snapshot kept when one is due.
    pub(crate) fn persist(&mut self) {
        let due = self.snapshots.next_wake().is_some_and(|at| at <= self.now.monotonic);
        let Some(snapshot) = due.then(|| self.snapshot()).flatten() else { return };
        self.snapshots.own_changed = false;
        self.snapshots.fleet_changed = false;
        self.snapshots.saved_at = Some(self.now.monotonic);
        let size = self.view.endpoint_count() + self.view.services().len();
        self.snapshots.own_pause = PERSIST_OWN_PAUSE_EACH * u32::try_from(size).unwrap_or(u32::MAX);
        self.out.push(Command::Persist(Box::new(snapshot)));
    }

    /// All that the next agent may need; for the shell when it stops, since the last one may not be due yet. O(fleet).
    ///
    /// `None` before the kernel has been read and this node is a member: nothing that is better than the last one.
    pub fn snapshot(&self) -> Option<Snapshot> {
        if !self.audit.observed || !self.is_member() {
            return None;
        }
        // What this node owns it knows better than the store, which may have lost it.
        let own = self.wanted_record();
        let others = self.view.nodes().iter().filter(|(name, _)| **name != self.config.node);
        let nodes = others.map(|(name, entry)| (name, &entry.record)).chain([(&self.config.node, &own)]);
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
        let lost = self.ipam.own.iter().filter(|(cidr, _)| !self.view.cidrs().contains_key(cidr));
        let lost = lost.map(|(cidr, since)| SavedCidr {
            cidr: *cidr,
            node: self.config.node.clone(),
            state: ClaimState::Live,
            epoch: since.revision,
            since: Some(*since),
        });
        let cidrs = self.view.cidrs().iter().map(|(cidr, claim)| SavedCidr {
            cidr: *cidr,
            node: claim.record.node.clone(),
            state: claim.record.state,
            epoch: claim.created,
            since: claim.record.since,
        });
        let records = self.view.endpoints().iter().map(|(node, records)| {
            let saved = records.iter().map(|(ip, entry)| SavedRecord {
                address: *ip,
                identity: entry.record.identity,
                name: entry.record.name.clone(),
                terminating: entry.record.terminating,
            });
            (node.clone(), saved.collect())
        });
        let services = self.view.services().iter().map(|(name, entry)| (name.clone(), entry.record.clone()));
        Some(Snapshot {
            fleet: self.config.fleet.clone(),
            fleet_id: self.membership.fleet_id.clone()?,
            node: self.config.node.clone(),
            machine_id: self.config.machine_id.clone(),
            store: self.view.store()?,
            life: self.view.life(),
            revision: self.view.revision(),
            mark: self.view.mark().map(|entry| (entry.record.clone(), entry.modified)),
            heard_at: self.store.heard_at.unwrap_or_default(),
            nodes: nodes.collect(),
            cidrs: cidrs.chain(lost).collect(),
            identities: self.saved_identities(),
            records: records.collect(),
            services: services.collect(),
        })
    }

    /// Live identities of the view, and those granted to this node that the view does not show yet.
    fn saved_identities(&self) -> Vec<SavedIdentity> {
        let live = self.view.identities().iter().filter(|(_, entry)| entry.record.state == ClaimState::Live);
        let mut saved: BTreeMap<Identity, (&Labels, bool)> = live
            .map(|(id, entry)| {
                (*id, (&entry.record.labels, self.view.refs(*id).contains_key(&self.config.node)))
            })
            .collect();
        saved.extend(self.identities.referenced().map(|(id, labels)| (id, (labels, true))));
        saved
            .into_iter()
            .map(|(id, (labels, referenced))| SavedIdentity { id, labels: labels.clone(), referenced })
            .collect()
    }
}
