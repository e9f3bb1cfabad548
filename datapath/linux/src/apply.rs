//! Carries out plans: each step is one arm of one `match`.

use std::{
    collections::BTreeMap,
    mem::discriminant,
    net::{IpAddr, Ipv4Addr},
};

use datapath_abi::{
    ABI_VERSION, IpcacheEntry, LpmKey, NodeConfig, NodeEntry, V4, epoch_shard_v4, node_flags,
};
use datapath_plan::{
    Base, EndpointId, EndpointValue, EpochScope, HostRouting, IpcacheValue, Masquerade, Mode, NodeIndex,
    NodeValue, Op, OpFailure, Plan, PlanOutcome, RouteValue,
};
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::{
    datapath::Datapath,
    device::{self, HOST_DEVICE, VXLAN_DEVICE},
    endpoint::Workshop,
    error::DatapathError,
    route,
    rows::BATCH_ENTRIES,
};

pub(crate) type Answer = Result<(), DatapathError>;

impl Datapath {
    /// Carries out the steps in order. Map entries and routes that follow one another go to the
    /// kernel together; a step that fails is named in the outcome and stops neither its neighbours nor those after
    /// it. Applying a plan twice changes nothing, but that epochs rise.
    pub async fn apply(&mut self, plan: Plan) -> PlanOutcome {
        let mut failures = Vec::new();
        if let Err(error) = self.slot_tables.clear(&self.maps) {
            // They are tried again with the next plan; nothing leads there.
            tracing::warn!(error = error.chain(), "tables that are used no more stay");
        }
        let runs = plan.ops.chunk_by(|a, b| goes_in_batches(a) && discriminant(a) == discriminant(b));
        // Rows and answers of a run are made whole: not of 100,000 at once.
        for run in runs.flat_map(|run| run.chunks(BATCH_ENTRIES as usize)) {
            let answers = match &run[0] {
                Op::PutBase(base) => vec![self.put_base(base).await],
                Op::PutNode(..) => self.put_nodes(run),
                Op::DeleteNode(_) => self.delete_nodes(run),
                Op::PutIpcache(..) => self.put_ipcache(run),
                Op::DeleteIpcache(_) => self.delete_ipcache(run),
                Op::PutRoute(..) => self.put_routes(run).await,
                Op::DeleteRoute(_) => self.delete_routes(run).await,
                Op::PutEndpoint(id, value) => vec![self.put_endpoint(*id, value).await],
                Op::DeleteEndpoint(id) => vec![self.workshop().delete(*id).await],
                Op::PutBackend(..) => self.put_backends(run),
                Op::DeleteBackend(_) => self.delete_backends(run),
                Op::PutService(..) => self.put_services(run),
                Op::DeleteService(_) => self.delete_services(run),
                Op::PutFrontend(..) => self.put_frontends(run),
                Op::DeleteFrontend(_) => self.delete_frontends(run),
                Op::BumpEpochs(scope) => vec![self.bump_epochs(scope)],
            };
            for (op, answer) in run.iter().zip(answers) {
                if let Err(error) = answer {
                    failures.push(OpFailure { op: op.clone(), error: error.into() });
                }
            }
        }
        self.sockets.end_orphans(&self.maps, &plan.ops);
        PlanOutcome { generation: plan.generation, failures }
    }

    fn workshop(&mut self) -> Workshop<'_> {
        Workshop {
            netlink: &self.netlink,
            maps: &self.maps,
            hooks: &mut self.hooks,
            sockets: &mut self.sockets,
        }
    }

    async fn put_base(&mut self, base: &Base) -> Answer {
        let gateway_v4 = v4(base.gateway)?;
        let underlay_v4 = v4(base.underlay.address)?;
        let devices = device::prepare_base(&self.netlink, base).await?;
        self.put_unmasqueraded(base.masquerade.as_ref())?;
        let (first_port, last_port) = base
            .masquerade
            .as_ref()
            .map_or((0, 0), |masquerade| (masquerade.first_port, masquerade.last_port));
        let config = NodeConfig {
            abi_version: ABI_VERSION,
            flags: flags(base),
            host_ifindex: devices.host.index,
            net_ifindex: devices.net.index,
            vxlan_ifindex: devices.vxlan.as_ref().map_or(0, |vxlan| vxlan.index),
            underlay_ifindex: base.underlay.ifindex,
            gateway_v4,
            underlay_v4,
            pod_mtu_bytes: base.mtu_bytes,
            underlay_mtu_bytes: base.underlay.mtu_bytes,
            tunnel_port: base.tunnel_port,
            masquerade_port_min: first_port,
            masquerade_port_max: last_port,
            host_mac: devices.host.mac.map_or([0; 6], |mac| mac.0),
        };
        // Written before the programs are attached: without it they drop.
        self.maps.config.put(&0, &config)?;
        self.hooks.attach(HOST_DEVICE)?;
        // One that is gone is told by the watch, and another one will be wanted.
        if let Some(underlay) = self.netlink.link_at(base.underlay.ifindex).await? {
            self.hooks.attach_underlay(&self.netlink, &underlay.name).await?;
            self.put_before_stack(&underlay);
        }
        self.sockets.repair(&mut self.hooks, &self.maps);
        match devices.vxlan {
            Some(_) => self.hooks.attach(VXLAN_DEVICE),
            // Last: until here packets could still go by it.
            None => {
                self.hooks.detach(VXLAN_DEVICE)?;
                device::remove_vxlan(&self.netlink).await
            }
        }
    }

    /// Makes the destinations that see endpoints' own addresses what the base says: new ones first.
    fn put_unmasqueraded(&self, masquerade: Option<&Masquerade>) -> Answer {
        let table = &self.maps.unmasqueraded_lpm_v4;
        let mut wanted = Vec::new();
        for prefix in masquerade.iter().flat_map(|masquerade| &masquerade.exclude) {
            // What is of IPv6 nobody masquerades.
            if let IpNetwork::V4(network) = prefix {
                wanted.push((lpm_key(*network), 1));
            }
        }
        first_failure(table.put_all(&wanted))?;
        let stale: Vec<LpmKey<V4>> = (table.dump()?.into_iter().map(|(key, _)| key))
            .filter(|key| wanted.iter().all(|(kept, _)| kept != key))
            .collect();
        first_failure(table.delete_all(&stale))
    }

    async fn put_endpoint(&mut self, id: EndpointId, value: &EndpointValue) -> Answer {
        let Some((base, _)) = self.base().await? else {
            return Err(DatapathError::NotReady("the node's own devices are not there yet".into()));
        };
        self.workshop().put(id, value, &base).await
    }

    fn put_nodes(&self, run: &[Op]) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::with_capacity(run.len());
        let mut addresses = BTreeMap::new();
        for op in run {
            let Op::PutNode(index, value) = op else { continue };
            answers.push(self.put_node(*index, value).map(|address| {
                addresses.insert(index.0, Some(address));
            }));
        }
        self.forget_senders(&addresses, run, answers)
    }

    fn put_node(&self, index: NodeIndex, value: &NodeValue) -> Result<V4, DatapathError> {
        let address = v4(value.underlay)?;
        let underlay = Ipv4Addr::from(address).to_ipv6_mapped().octets();
        self.maps.nodes.put(&index.0, &NodeEntry { underlay, family: 4 })?;
        self.maps.node_by_address_v4.put(&address, &index.0)?;
        Ok(address)
    }

    fn delete_nodes(&self, run: &[Op]) -> Vec<Answer> {
        let indexes = run.iter().filter_map(|op| match op {
            Op::DeleteNode(index) => Some((index.0, None)),
            _ => None,
        });
        // First: nothing more is accepted from them.
        let answers = self.forget_senders(&indexes.collect(), run, run.iter().map(|_| Ok(())).collect());
        run.iter()
            .zip(answers)
            .map(|(op, answer)| match op {
                Op::DeleteNode(index) => answer.and(self.maps.nodes.put(&index.0, &NodeEntry::default())),
                _ => answer,
            })
            .collect()
    }

    /// Takes away the addresses that tunnel packets of these nodes are accepted from, but for the one beside each
    /// index. One reading of the table for the whole run; a failure of that is a failure of all its steps.
    fn forget_senders(
        &self,
        nodes: &BTreeMap<u32, Option<V4>>,
        run: &[Op],
        answers: Vec<Answer>,
    ) -> Vec<Answer> {
        let forget = || -> Answer {
            let senders = self.maps.node_by_address_v4.dump()?;
            let stale = senders
                .into_iter()
                .filter(|(address, owner)| nodes.get(owner).is_some_and(|keep| *keep != Some(*address)));
            let stale: Vec<V4> = stale.map(|(address, _)| address).collect();
            first_failure(self.maps.node_by_address_v4.delete_all(&stale))
        };
        match forget() {
            Ok(()) => answers,
            Err(error) => repeat(run, &error),
        }
    }

    fn put_ipcache(&self, run: &[Op]) -> Vec<Answer> {
        let mut split = Split::new(run.len());
        for (index, op) in run.iter().enumerate() {
            let Op::PutIpcache(prefix, IpcacheValue { identity, node }) = op else { continue };
            let entry = IpcacheEntry { identity: identity.get(), node: node.0 };
            split.add(index, *prefix, entry);
        }
        let failed = self.maps.ipcache_v4.put_all(&split.exact);
        split.fail_exact(failed);
        let failed = self.maps.ipcache_lpm_v4.put_all(&split.prefixes);
        split.fail_prefixes(failed);
        split.answers
    }

    fn delete_ipcache(&self, run: &[Op]) -> Vec<Answer> {
        let mut split = Split::new(run.len());
        for (index, op) in run.iter().enumerate() {
            let Op::DeleteIpcache(prefix) = op else { continue };
            split.add(index, *prefix, ());
        }
        let keys: Vec<V4> = split.exact.iter().map(|(key, ())| *key).collect();
        split.fail_exact(self.maps.ipcache_v4.delete_all(&keys));
        let keys: Vec<LpmKey<V4>> = split.prefixes.iter().map(|(key, ())| *key).collect();
        split.fail_prefixes(self.maps.ipcache_lpm_v4.delete_all(&keys));
        split.answers
    }

    async fn put_routes(&self, run: &[Op]) -> Vec<Answer> {
        let device = match self.netlink.expect_link(HOST_DEVICE).await {
            Ok(link) => link.index,
            Err(error) => return repeat(run, &error),
        };
        let routes = run.iter().filter_map(|op| match op {
            Op::PutRoute(destination, value) => Some((*destination, *value)),
            _ => None,
        });
        let routes: Vec<(IpNetwork, RouteValue)> = routes.collect();
        route::put_all(&self.netlink, device, self.config.route_protocol, routes).await
    }

    async fn delete_routes(&self, run: &[Op]) -> Vec<Answer> {
        let destinations = run.iter().filter_map(|op| match op {
            Op::DeleteRoute(destination) => Some(*destination),
            _ => None,
        });
        route::delete_all(&self.netlink, self.config.route_protocol, destinations.collect()).await
    }

    pub(crate) fn bump_epochs(&self, scope: &EpochScope) -> Answer {
        let mut epochs = match scope {
            EpochScope::All => self.maps.epochs.dump()?,
            EpochScope::Addresses(addresses) => {
                let mut shards: Vec<u32> = Vec::with_capacity(addresses.len());
                for address in addresses {
                    // No flow of another family is in any table: nothing to raise, and nothing that fails.
                    if let IpAddr::V4(address) = address {
                        shards.push(epoch_shard_v4(address.octets()));
                    }
                }
                shards.sort_unstable();
                shards.dedup();
                let mut epochs = Vec::with_capacity(shards.len());
                for shard in shards {
                    epochs.push((shard, self.maps.epochs.get(&shard)?.unwrap_or_default()));
                }
                epochs
            }
        };
        for (_, epoch) in &mut epochs {
            *epoch = epoch.wrapping_add(1);
        }
        first_failure(self.maps.epochs.put_all(&epochs))
    }
}

const fn goes_in_batches(op: &Op) -> bool {
    !matches!(op, Op::PutBase(_) | Op::PutEndpoint(..) | Op::DeleteEndpoint(_) | Op::BumpEpochs(_))
}

/// What the programs are told of the ways that packets take.
fn flags(base: &Base) -> u32 {
    let native = if base.mode == Mode::Native { node_flags::NATIVE } else { 0 };
    let legacy = if base.host_routing == HostRouting::Legacy { node_flags::LEGACY_HOST_ROUTING } else { 0 };
    let masquerade = if base.masquerade.is_some() { node_flags::MASQUERADE } else { 0 };
    native | legacy | masquerade
}

pub(crate) fn lpm_key(network: Ipv4Network) -> LpmKey<V4> {
    LpmKey { prefix_len: network.prefix().into(), address: network.network().octets() }
}

pub(crate) fn first_failure(failed: Vec<(usize, DatapathError)>) -> Answer {
    failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// One failure that is the answer to every step.
pub(crate) fn repeat(run: &[Op], error: &DatapathError) -> Vec<Answer> {
    let text = error.chain();
    run.iter().map(|_| Err(DatapathError::NotReady(text.clone()))).collect()
}

/// Ipcache steps by the map that they concern, with the way back to the place of each in the run.
struct Split<T> {
    exact: Vec<(V4, T)>,
    exact_places: Vec<usize>,
    prefixes: Vec<(LpmKey<V4>, T)>,
    prefix_places: Vec<usize>,
    answers: Vec<Answer>,
}

impl<T> Split<T> {
    fn new(len: usize) -> Self {
        Self {
            exact: Vec::new(),
            exact_places: Vec::new(),
            prefixes: Vec::new(),
            prefix_places: Vec::new(),
            answers: (0..len).map(|_| Ok(())).collect(),
        }
    }

    fn add(&mut self, place: usize, prefix: IpNetwork, value: T) {
        match prefix {
            IpNetwork::V4(network) if network.prefix() == 32 => {
                self.exact.push((network.ip().octets(), value));
                self.exact_places.push(place);
            }
            IpNetwork::V4(network) => {
                self.prefixes.push((lpm_key(network), value));
                self.prefix_places.push(place);
            }
            IpNetwork::V6(_) => {
                self.answers[place] = Err(DatapathError::Unsupported(format!("IPv6 prefix {prefix}")));
            }
        }
    }

    fn fail_exact(&mut self, failed: Vec<(usize, DatapathError)>) {
        for (index, error) in failed {
            self.answers[self.exact_places[index]] = Err(error);
        }
    }

    fn fail_prefixes(&mut self, failed: Vec<(usize, DatapathError)>) {
        for (index, error) in failed {
            self.answers[self.prefix_places[index]] = Err(error);
        }
    }
}

/// The bytes of an IPv4 address; this version has maps for no other.
pub(crate) fn v4(address: IpAddr) -> Result<V4, DatapathError> {
    match address {
        IpAddr::V4(address) => Ok(address.octets()),
        IpAddr::V6(_) => Err(DatapathError::Unsupported(format!("IPv6 address {address}"))),
    }
}
