//! Accessors: what the node knows and wants, for reading.

use std::net::IpAddr;

use datapath_plan::Tables;
use identity::{EndpointName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::Revision;

use super::{Node, own, sources};
use crate::{
    Counters, CountsView, EndpointView, IdentityView, IpcacheView, NodeView, PlanView, RejectedView,
    ServiceView, Snapshot, StatusView, StoreView, fleet::Own, ipcache::Sources,
};

impl Node {
    /// The node at a glance.
    pub fn status(&self) -> StatusView {
        let (config, fleet) = (&self.cx.config, &self.fleet);
        StatusView {
            node: config.node.clone(),
            fleet: config.fleet.clone(),
            fleet_id: fleet.fleet_id().map(str::to_owned),
            agent_version: config.agent_version.clone(),
            incarnation: config.incarnation,
            started_at: self.started_at,
            halted: fleet.halted().cloned(),
            warnings: self.warnings(),
            store: StoreView {
                connected: fleet.is_connected(),
                lost: fleet.lost().cloned(),
                revision: fleet.view().revision().0,
                heard_at: fleet.heard_at(),
                requests_in_flight: self.cx.requests.in_flight(),
                writes_queued: self.records.queued(),
                rejected: self.rejected().len(),
            },
            underlay: self.routing.addresses().to_vec(),
            pod_mtu_bytes: self.routing.pod_mtu_bytes(config),
            gateway: self.ipam.gateway(),
            cidrs: self.ipam.views(),
            plan: self.plan_view(),
            audit: self.audit.last().cloned(),
            last_error: self.cx.last_error().cloned(),
            counts: CountsView {
                nodes: self.nodes().len(),
                endpoints: self.endpoints.len(),
                fleet_endpoints: fleet.view().endpoint_count(),
                identities: fleet.view().identities().len(),
                ipcache: self.wanted().ipcache.len(),
            },
            counters: self.cx.counters.clone(),
        }
    }

    fn plan_view(&self) -> PlanView {
        let kernel = &self.cx.kernel;
        let (planned, applied) = kernel.generations();
        let failing = kernel.failing().iter();
        PlanView {
            observed: self.cx.startup.kernel_read,
            planned,
            applied,
            in_flight: kernel.in_flight(),
            dirty: kernel.dirty(),
            failing: failing.map(|(key, failing)| (key.to_string(), failing.error.to_string())).collect(),
            full: kernel.full().iter().map(ToString::to_string).collect(),
        }
    }

    /// What an operator should look at.
    fn warnings(&self) -> Vec<String> {
        let (config, startup, fleet) = (&self.cx.config, self.cx.startup, &self.fleet);
        let suspect = fleet.suspect().map(|reason| format!("the store is not believed: {reason}"));
        let foreign = (startup.listing_trusted == Some(false)).then(|| {
            "the store has never heard of this node, but its kernel holds a fleet: what is there is kept; if the fleet was made anew, run `warrend cleanup` on this node and start the agent again".to_owned()
        });
        let full = self.cx.kernel.full().into_iter().map(|error| error.to_string());
        let snapshot = (startup.snapshot_used && !fleet.view().is_complete()).then(|| {
            "the store has not been read since the start: this node serves from its snapshot".to_owned()
        });
        let mut warnings: Vec<String> = suspect.into_iter().chain(fleet.restoration_warning()).collect();
        warnings.extend(self.routing.warnings(config, fleet, &self.peers));
        warnings.extend(foreign);
        warnings.extend(self.ipam.warnings(config, fleet.is_connected()));
        warnings.extend(full);
        warnings.extend(self.endpoints.warnings());
        warnings.extend(snapshot);
        warnings.extend(self.services.warnings(&self.health, sources!(self)));
        warnings.extend(self.health.warning());
        warnings
    }

    /// Everything that the kernel should hold.
    pub fn wanted(&self) -> &Tables {
        self.cx.kernel.wanted()
    }

    /// Everything that the kernel is believed to hold.
    pub fn applied(&self) -> &Tables {
        self.cx.kernel.applied()
    }

    /// Counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.cx.counters
    }

    /// This node's endpoints, by name.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        self.endpoints.views(|ip| self.records.is_recorded(&self.fleet, &self.endpoints, ip))
    }

    /// One endpoint of this node.
    pub fn endpoint(&self, name: &EndpointName) -> Option<EndpointView> {
        self.endpoints.view(name, |ip| self.records.is_recorded(&self.fleet, &self.endpoints, ip))
    }

    /// The fleet's nodes, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.peers.views(&self.fleet, own!(self), self.endpoints.len())
    }

    /// Reserved and fleet identities, by number.
    pub fn identities(&self) -> Vec<IdentityView> {
        self.identities.views(&self.fleet)
    }

    /// The fleet's services, by name.
    pub fn services(&self) -> Vec<ServiceView> {
        self.fleet.view().services().keys().filter_map(|name| self.service(name)).collect()
    }

    /// One service.
    pub fn service(&self, name: &ServiceName) -> Option<ServiceView> {
        let entry = self.fleet.view().services().get(name)?;
        Some(self.services.view(&self.health, &self.ipcache, sources!(self), name, entry))
    }

    /// The ipcache as wanted, by prefix: O(all), for listings.
    pub fn ipcache(&self) -> Vec<IpcacheView> {
        let entries = self.wanted().ipcache.iter();
        entries.map(|(prefix, value)| self.ipcache.view(sources!(self), *prefix, *value)).collect()
    }

    /// The ipcache entry that decides about one address: O(log n), for decoding events.
    pub fn lookup(&self, address: IpAddr) -> Option<IpcacheView> {
        let (prefix, value) = self.ipcache.lookup(&self.cx, address)?;
        Some(self.ipcache.view(sources!(self), prefix, value))
    }

    /// Records and facts that were not accepted, by key.
    pub fn rejected(&self) -> Vec<RejectedView> {
        let undecodable = self.fleet.view().rejected().iter();
        let undecodable = undecodable
            .map(|(key, rejected)| RejectedView { key: key.to_string(), reason: rejected.reason.clone() });
        let records = self.ipcache.rejected(&self.fleet);
        let mut all: Vec<RejectedView> =
            undecodable.chain(records).chain(self.peers.rejected(&self.fleet)).collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    /// All that the next agent may need, for the shell when it stops: the last snapshot may be out of date. O(fleet).
    ///
    /// `None` before the kernel has been read and this node is a member: the former snapshot is better.
    pub fn snapshot(&self) -> Option<Snapshot> {
        Snapshot::make(&self.cx, &self.fleet, own!(self), &self.identities)
    }

    /// Up to which revision the store is known.
    pub fn revision(&self) -> Revision {
        self.fleet.view().revision()
    }

    /// The blocks that the store has confirmed to be this node's.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.ipam.held()
    }

    /// What the kernel should hold, with every node, block, record and address computed again. O(all), for checkers.
    ///
    /// It equals [`Node::wanted`]; if not, some change did not reach everything that depends on it.
    pub fn wanted_anew(&self) -> Tables {
        let mut copy = self.clone();
        if copy.cx.startup.kernel_read {
            copy.touch_everything();
            copy.refresh();
        }
        copy.wanted().clone()
    }

    fn touch_everything(&mut self) {
        let (changes, view) = (&mut self.cx.changes, self.fleet.view());
        changes.all_peers = true;
        changes.base = true;
        changes.services.extend(view.services().keys().cloned());
        changes.nodes.extend(view.nodes().keys().cloned());
        changes.blocks.extend(view.cidrs().keys().copied());
        changes.blocks.extend(self.peers.owned_blocks());
        changes.blocks.extend(self.cx.kernel.wanted().routes.keys().copied());
        for node in view.endpoints().keys().filter(|node| *node != self.fleet.node()) {
            changes.records.extend(self.fleet.records(node).map(|(ip, _)| (node.clone(), ip)));
        }
        let exact = self.cx.kernel.wanted().ipcache.keys();
        let exact = exact.filter(|prefix| IpNetwork::from(prefix.ip()) == **prefix);
        changes.addresses.extend(exact.map(IpNetwork::ip));
        self.health.touch_all();
    }
}
