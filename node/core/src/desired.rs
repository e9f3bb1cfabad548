//! From what is known to what the kernel should hold, entry by entry: only what was touched is looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use datapath_plan::{Base, BaseUnderlay, IpcacheValue, Mode, NextHop, NodeIndex, RouteValue, Single};
use identity::{EndpointName, Identity, LabelDigest, Labels, NodeName};
use ipnetwork::IpNetwork;
use kvstore_schema::record::EndpointRecord;
use node_facts::PendingOp;
use serde::{Deserialize, Serialize};

use crate::{
    DatapathConfig, EndpointState, IpcacheSource, IpcacheView, NativeRoutes, RejectedView, node::Node,
    peers::network,
};

/// What has to be looked at again, and what was not accepted. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Desired {
    /// The base: gateway, MTU, port. All routes depend on it.
    pub base: bool,
    pub nodes: BTreeSet<NodeName>,
    /// Blocks: their owner, prefix and route.
    pub prefixes: BTreeSet<IpNetwork>,
    /// Endpoint records of other nodes: whether they count.
    pub records: BTreeSet<(NodeName, IpAddr)>,
    /// Numbers that came or have another meaning: endpoints may bear them with other labels.
    pub numbers: BTreeSet<Identity>,
    /// The labels that each number had when it was looked at last.
    meant: BTreeMap<Identity, LabelDigest>,
    /// Records whose number is not there, or has other labels: few, or none.
    unproven: BTreeMap<(NodeName, IpAddr), Identity>,
    /// Exact addresses.
    pub addresses: BTreeSet<IpAddr>,
    rejected_records: BTreeMap<(NodeName, IpAddr), String>,
    pub rejected_facts: BTreeMap<NodeName, String>,
}

impl Node {
    /// Brings everything touched up to date. O(touched · log n). Each kind may touch the ones after it. Nodes may touch
    /// nodes (rivals for an address), and blocks those whose address lies in them; that ends because what is looked at
    /// again without a change touches nothing.
    pub(crate) fn refresh_desired(&mut self) {
        self.refresh_numbers();
        while !self.desired.nodes.is_empty() || self.desired.base || !self.desired.prefixes.is_empty() {
            while let Some(node) = self.desired.nodes.pop_first() {
                self.refresh_node(&node);
            }
            if std::mem::take(&mut self.desired.base) {
                self.refresh_base();
            }
            while let Some(cidr) = self.desired.prefixes.pop_first() {
                self.refresh_owner(cidr);
                self.refresh_prefix(cidr);
            }
        }
        while let Some((node, ip)) = self.desired.records.pop_first() {
            self.refresh_record(node, ip);
        }
        while let Some(ip) = self.desired.addresses.pop_first() {
            let entry = self.address_entry(ip);
            self.note_terminating(ip, entry.is_some_and(|(_, source)| self.is_terminating(ip, source)));
            self.follow_address(ip, entry);
            self.want_ipcache(IpNetwork::from(ip), entry.map(|(value, _)| value));
        }
        self.refresh_services();
    }

    /// Services follow endpoints, and nothing else that has an address.
    fn follow_address(&mut self, ip: IpAddr, entry: Option<(IpcacheValue, IpcacheSource)>) {
        let source = entry.map(|(_, source)| source);
        let identity = entry.map(|(value, _)| value.identity).filter(|_| {
            matches!(
                source,
                Some(IpcacheSource::LocalEndpoint | IpcacheSource::Record | IpcacheSource::Gossip)
            )
        });
        let labels = identity
            .filter(|identity| !self.services.knows(*identity))
            .map(|identity| self.labels_of(identity, ip));
        self.follow_endpoint(ip, identity, || labels.unwrap_or_default());
    }

    /// The labels that an identity stands for; an endpoint of it is at `ip`.
    fn labels_of(&self, identity: Identity, ip: IpAddr) -> Labels {
        if let Some(entry) = self.view.identities().get(&identity) {
            return entry.record.labels.clone();
        }
        // Newer than what is known of the store: who has it says what it is.
        let owner = self.peers.owner_of_ip(ip);
        let told = || Some(self.peers.pending_at(owner?, ip)?.labels.clone());
        let recorded = || Some(self.view.endpoints().get(owner?)?.get(&ip)?.record.labels.clone());
        let local = self.endpoints.at(ip).map(|endpoint| endpoint.labels.clone());
        self.counting_labels(&local.or_else(told).or_else(recorded).unwrap_or_default())
    }

    /// The endpoint at an address, as far as services follow it.
    pub(crate) fn endpoint_at(&self, ip: IpAddr) -> Option<(NodeName, EndpointName)> {
        let (value, source) = self.address_entry(ip)?;
        let name = self.endpoint_name(ip, source)?;
        let node = match value.node {
            NodeIndex::SELF => self.config.node.clone(),
            index => self.peers.name_of(index)?.clone(),
        };
        Some((node, name))
    }

    /// Whether the endpoint at an address is on its way out, by whoever tells of it.
    fn is_terminating(&self, ip: IpAddr, source: IpcacheSource) -> bool {
        let owner = || self.peers.owner_of_ip(ip);
        let terminating = match source {
            IpcacheSource::LocalEndpoint => self.endpoints.at(ip).map(|endpoint| endpoint.terminating),
            IpcacheSource::Gossip => {
                owner().and_then(|owner| Some(self.peers.pending_at(owner, ip)?.terminating))
            }
            IpcacheSource::Record => {
                owner().and_then(|owner| Some(self.view.endpoints().get(owner)?.get(&ip)?.record.terminating))
            }
            IpcacheSource::Host | IpcacheSource::RemoteNode | IpcacheSource::Cidr => None,
        };
        terminating == Some(true)
    }

    /// Touches the endpoints that bear one of the numbers touched. O(unproven) for a number that comes with a new label set;
    /// O(endpoints), for all of them together, when numbers go or get another meaning.
    fn refresh_numbers(&mut self) {
        let numbers = std::mem::take(&mut self.desired.numbers);
        if numbers.is_empty() {
            return;
        }
        let mut changed = BTreeSet::new();
        for number in &numbers {
            let means = self.view.identities().get(number).map(|entry| entry.record.labels.digest());
            let meant = match means.clone() {
                Some(digest) => self.desired.meant.insert(*number, digest),
                None => self.desired.meant.remove(number),
            };
            if meant.is_some() && meant != means {
                changed.insert(*number);
            }
        }
        let unproven = self.desired.unproven.iter().filter(|(_, number)| numbers.contains(number));
        self.desired.records.extend(unproven.map(|(key, _)| key.clone()));
        for number in &numbers {
            let Some(labels) = self.view.identities().get(number).map(|entry| entry.record.labels.clone())
            else {
                continue;
            };
            let touched = self.endpoints_that_meant_other_labels(*number, &labels);
            self.desired.addresses.extend(touched);
        }
        if !changed.is_empty() {
            let records = self.view.endpoints().iter().filter(|(node, _)| **node != self.config.node);
            let records =
                records.flat_map(|(node, ips)| ips.iter().map(move |(ip, entry)| (node, ip, entry)));
            let touched = records.filter(|(.., entry)| changed.contains(&entry.record.identity));
            self.desired.records.extend(touched.map(|(node, ip, _)| (node.clone(), *ip)));
        }
        let told = self.peers.told_endpoints().filter(|told| numbers.contains(&told.identity));
        self.desired.addresses.extend(told.map(|told| told.ip));
    }

    /// Before a whole listing has been seen, an entry that we know nothing of is no entry to remove: the
    /// kernel may have it from a former agent that knew more (P6).
    fn want_ipcache(&mut self, prefix: IpNetwork, value: Option<IpcacheValue>) {
        // The programs have no table for IPv6: of a node that has addresses of both families only the others count.
        if prefix.is_ipv6() {
            return;
        }
        let known = self.view.is_complete() || self.reconciler.wanted().ipcache.contains_key(&prefix);
        if value.is_some() || known {
            self.reconciler.set(prefix, value);
        }
    }

    /// MTU of endpoints and of routes to pods.
    pub(crate) fn pod_mtu_bytes(&self) -> u32 {
        let fits = self.fitting_mtu_bytes();
        self.config.datapath.pod_mtu_bytes.map_or(fits, |wanted| wanted.min(fits))
    }

    /// The most that fits into the underlay.
    pub(crate) fn fitting_mtu_bytes(&self) -> u32 {
        datapath_plan::pod_mtu_bytes(self.config.datapath.mode, self.underlay.mtu_bytes)
    }

    /// `None` while this node has no address of its own.
    fn base(&self) -> Option<Base> {
        let gateway = self.gateway()?;
        let address = *self.underlay.addresses.first()?;
        let DatapathConfig { mode, host_routing, masquerade, .. } = &self.config.datapath;
        let masquerade = masquerade.clone().map(|mut masquerade| {
            masquerade.exclude.extend(&self.config.pools);
            masquerade
        });
        Some(Base {
            gateway,
            tunnel_port: self.config.tunnel_port,
            mtu_bytes: self.pod_mtu_bytes(),
            mode: *mode,
            host_routing: *host_routing,
            underlay: BaseUnderlay {
                ifindex: self.underlay.ifindex,
                address,
                mtu_bytes: self.underlay.mtu_bytes,
            },
            masquerade,
        })
    }

    fn refresh_base(&mut self) {
        self.desired.addresses.extend(self.underlay.addresses.iter().copied());
        self.desired.addresses.extend(self.gateway());
        if let Some(base) = self.base() {
            self.reconciler.set(Single, Some(base));
        }
        self.refresh_service_routes();
        self.desired.prefixes.extend(self.peers.owned_cidrs());
    }

    fn refresh_prefix(&mut self, cidr: IpNetwork) {
        let entry = self.prefix_entry(cidr);
        self.want_ipcache(cidr, entry.map(|(value, _)| value));
        let route = match self.is_service_route(cidr) {
            true => self.service_route(),
            false => entry.and(self.gateway()).and_then(|source| self.route(cidr, source)),
        };
        let known = self.view.is_complete() || self.reconciler.wanted().routes.contains_key(&cidr);
        if route.is_some() || known {
            self.reconciler.set(cidr, route);
        }
    }

    /// The route to a block; none where others make it, or nobody can.
    fn route(&self, cidr: IpNetwork, source: IpAddr) -> Option<RouteValue> {
        let mtu_bytes = self.pod_mtu_bytes();
        let owner = self.peers.owner(cidr)?;
        let next_hop = match self.config.datapath.mode {
            Mode::Native if *owner != self.config.node => Some(self.next_hop(owner)?),
            Mode::Native | Mode::Tunnel => None,
        };
        Some(RouteValue { next_hop, source, mtu_bytes })
    }

    /// The way to a node without a tunnel, if it is on the same network.
    fn next_hop(&self, node: &NodeName) -> Option<NextHop> {
        let address = self.peers.tunnel_of(node)?;
        let near = self.underlay.network.contains(address);
        let direct = self.config.datapath.native_routes == NativeRoutes::Direct;
        (direct && near).then_some(NextHop { address, ifindex: self.underlay.ifindex })
    }

    /// What an operator should know of the ways that packets take.
    pub(crate) fn routing_warnings(&self) -> Vec<String> {
        let DatapathConfig { mode, native_routes, pod_mtu_bytes, refused, .. } = &self.config.datapath;
        let mut warnings = Vec::new();
        let fits = self.fitting_mtu_bytes();
        if let Some(wanted) = pod_mtu_bytes.filter(|wanted| *wanted > fits) {
            warnings.push(format!(
                "datapath.mtu_bytes is {wanted}, but the underlay carries {fits} at the most, which is used"
            ));
        }
        for (name, entry) in self.view.nodes().iter().filter(|(name, _)| **name != self.config.node) {
            for address in &entry.record.underlay {
                if let Some(network) = refused.iter().find(|network| network.contains(*address)) {
                    warnings.push(format!(
                        "datapath.drop_cidrs has {network}, and node {name} is at {address}: nothing that it sends gets here; \
                         take the network out of it and restart warrend"
                    ));
                }
            }
            let Some(theirs) = &entry.record.datapath_mode else { continue };
            if *theirs != mode.word() {
                warnings.push(format!(
                    "node {name} works with datapath.mode = \"{theirs}\", this node with \"{}\": their endpoints do not reach \
                     each other until all nodes agree",
                    mode.word()
                ));
            }
        }
        if (*mode, *native_routes) == (Mode::Native, NativeRoutes::Direct) {
            let owners: BTreeSet<&NodeName> =
                self.peers.owners().filter(|node| **node != self.config.node).collect();
            for node in owners {
                if let Some(address) =
                    self.peers.tunnel_of(node).filter(|ip| !self.underlay.network.contains(*ip))
                {
                    warnings.push(format!(
                        "node {node} at {address} is behind a router ({} is this node's network), so this node makes no route to \
                         its endpoints: let the network route its pod CIDRs, and set datapath.native_routes = \"external\"",
                        self.underlay.network
                    ));
                }
            }
        }
        warnings
    }

    /// What is known of the addresses of a block that nothing else is known of. They are routed to its node
    /// all the same; of another node's it is not known who they are, and unknown never means host.
    fn prefix_entry(&self, cidr: IpNetwork) -> Option<(IpcacheValue, IpcacheSource)> {
        let owner = self.peers.owner(cidr)?;
        let value = if *owner == self.config.node {
            IpcacheValue { identity: Identity::UNMANAGED, node: NodeIndex::SELF }
        } else {
            IpcacheValue { identity: Identity::UNKNOWN, node: self.peers.index_of(owner)? }
        };
        Some((value, IpcacheSource::Cidr))
    }

    /// Whose an address is, and why we say so. The first that knows wins.
    fn address_entry(&self, ip: IpAddr) -> Option<(IpcacheValue, IpcacheSource)> {
        let entry = |identity, node, source| Some((IpcacheValue { identity, node }, source));
        if self.underlay.addresses.contains(&ip) || self.gateway() == Some(ip) {
            return entry(Identity::HOST, NodeIndex::SELF, IpcacheSource::Host);
        }
        if let Some(index) = self.peers.node_at(ip) {
            return entry(Identity::REMOTE_NODE, index, IpcacheSource::RemoteNode);
        }
        if let Some(endpoint) = self.endpoints.at(ip) {
            let attached = matches!(endpoint.state, EndpointState::Attaching | EndpointState::Ready);
            return entry(
                endpoint.identity.filter(|_| attached)?,
                NodeIndex::SELF,
                IpcacheSource::LocalEndpoint,
            );
        }
        let owner = self.peers.owner_of_ip(ip).filter(|owner| **owner != self.config.node)?;
        let index = self.peers.index_of(owner)?;
        if let Some(change) = self.peers.pending_at(owner, ip) {
            // A number that means other labels says nothing of who this is.
            let meaning = self.view.identities().get(&change.identity);
            if meaning.is_some_and(|entry| entry.record.labels.digest() != change.labels_digest) {
                return None;
            }
            return match change.op {
                PendingOp::Added => entry(change.identity, index, IpcacheSource::Gossip),
                PendingOp::Removed => None,
            };
        }
        let record = self.view.endpoints().get(owner)?.get(&ip)?;
        if !self.means_its_labels(owner, ip) {
            return None;
        }
        entry(record.record.identity, index, IpcacheSource::Record)
    }

    /// An endpoint's record counts only inside a block that its node has claimed (P7): another one is
    /// rejected alone, and shown.
    fn refresh_record(&mut self, node: NodeName, ip: IpAddr) {
        self.desired.addresses.insert(ip);
        let record = self.view.endpoints().get(&node).and_then(|ips| ips.get(&ip)).map(|entry| &entry.record);
        let there = record.is_some();
        let owner = self.peers.owner_of_ip(ip);
        let key = (node, ip);
        let meant = |record: &EndpointRecord| self.desired.meant.get(&record.identity);
        match record.filter(|record| meant(record) != Some(&record.labels_digest)) {
            Some(record) => drop(self.desired.unproven.insert(key.clone(), record.identity)),
            None => drop(self.desired.unproven.remove(&key)),
        }
        let ours = owner == Some(&key.0);
        if !there || (ours && self.means_its_labels(&key.0, ip)) {
            self.desired.rejected_records.remove(&key);
            return;
        }
        let reason = match owner {
            Some(_) if ours => format!("the identity of {ip} is that of other labels"),
            Some(owner) => format!("{ip} lies in a pod CIDR of node {owner}"),
            None => format!("{ip} lies in no pod CIDR that is claimed"),
        };
        if self.desired.rejected_records.insert(key, reason).is_none() {
            self.counters.records_rejected += 1;
        }
    }

    /// Whether the identity of a record is that of its labels, as far as is known (P3).
    fn means_its_labels(&self, node: &NodeName, ip: IpAddr) -> bool {
        let record = self.view.endpoints().get(node).and_then(|ips| ips.get(&ip)).map(|entry| &entry.record);
        record.is_none_or(|record| {
            let Some(meaning) = self.view.identities().get(&record.identity) else { return true };
            // To find a digest costs less than to make one.
            match self.desired.meant.get(&record.identity) {
                Some(meant) if !self.desired.numbers.contains(&record.identity) => {
                    *meant == record.labels_digest
                }
                _ => meaning.record.labels.digest() == record.labels_digest,
            }
        })
    }

    /// The ipcache as wanted, by prefix: O(all), for listings.
    pub fn ipcache(&self) -> Vec<IpcacheView> {
        self.reconciler
            .wanted()
            .ipcache
            .iter()
            .map(|(prefix, value)| self.ipcache_view(*prefix, *value))
            .collect()
    }

    /// The ipcache entry that decides about one address: O(log n), for decoding events.
    pub fn lookup(&self, address: IpAddr) -> Option<IpcacheView> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|length| {
            let prefix = network(address, length);
            let value = self.reconciler.wanted().ipcache.get(&prefix)?;
            Some(self.ipcache_view(prefix, *value))
        })
    }

    fn endpoint_name(&self, ip: IpAddr, source: IpcacheSource) -> Option<EndpointName> {
        let owner = || self.peers.owner_of_ip(ip);
        match source {
            IpcacheSource::LocalEndpoint => self.endpoints.at(ip).map(|endpoint| endpoint.name.clone()),
            IpcacheSource::Gossip => self.peers.pending_at(owner()?, ip).map(|change| change.name.clone()),
            IpcacheSource::Record => Some(self.view.endpoints().get(owner()?)?.get(&ip)?.record.name.clone()),
            IpcacheSource::Host | IpcacheSource::RemoteNode | IpcacheSource::Cidr => None,
        }
    }

    fn ipcache_view(&self, prefix: IpNetwork, value: IpcacheValue) -> IpcacheView {
        let exact = self.address_entry(prefix.ip()).filter(|_| IpNetwork::from(prefix.ip()) == prefix);
        let labels = self.view.identities().get(&value.identity).map(|entry| entry.record.labels.clone());
        let node = match value.node {
            NodeIndex::SELF => Some(self.config.node.clone()),
            index => self.peers.name_of(index).cloned(),
        };
        IpcacheView {
            prefix,
            identity: value.identity,
            labels: labels.unwrap_or_default(),
            node,
            index: value.node,
            endpoint: exact.and_then(|(_, source)| self.endpoint_name(prefix.ip(), source)),
            source: exact.map_or(IpcacheSource::Cidr, |(_, source)| source),
        }
    }

    /// Records and facts that were not accepted, by key.
    pub fn rejected(&self) -> Vec<RejectedView> {
        let undecodable = self.view.rejected().iter();
        let undecodable = undecodable
            .map(|(key, rejected)| RejectedView { key: key.to_string(), reason: rejected.reason.clone() });
        let schema = self.view.schema();
        let records = self.desired.rejected_records.iter().map(|((node, ip), reason)| RejectedView {
            key: schema.endpoint(node, *ip).to_string(),
            reason: reason.clone(),
        });
        let facts = self.desired.rejected_facts.iter();
        let facts = facts
            .map(|(node, reason)| RejectedView { key: format!("gossip:{node}"), reason: reason.clone() });
        let rivals = self.nodes_without_number();
        let rivals = rivals.map(|(node, reason)| RejectedView { key: schema.node(node).to_string(), reason });
        let mut all: Vec<RejectedView> = undecodable.chain(records).chain(facts).chain(rivals).collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }
}
