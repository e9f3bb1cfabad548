//! Reads whole what the kernel holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use datapath_abi::{EndpointEntry, IpcacheEntry, V4};
use datapath_plan::{
    EndpointId, EndpointValue, IpcacheValue, Mac, NextHop, NodeIndex, NodeValue, Observed, RouteValue,
};
use identity::Identity;
use ipnetwork::{IpNetwork, Ipv4Network};

use crate::{
    datapath::Datapath,
    device::{self, BaseDevices, HOST_DEVICE},
    error::DatapathError,
    hook::{UNDERLAY_PROGRAMS, programs_of},
    netlink::Link,
    object::Program,
    route, sysctl,
};

impl Datapath {
    /// Reads maps, devices, routes and hooks. What is there in part is named in `broken` and left out of the
    /// tables (a node of which only one direction is there shows an address that nobody wants), so that the
    /// difference makes it again or removes it.
    ///
    /// # Errors
    /// Any: an observation is whole or none, since absence is acted upon.
    pub async fn observe(&mut self) -> Result<Observed, DatapathError> {
        let mut observed = Observed::default();
        let links = self.netlink.links().await?;
        let base = self.base().await?;
        if base.is_none() && links.iter().any(|link| link.is_ours() && link.endpoint().is_none()) {
            observed.broken.push("base: devices or configuration are there in part, or differ".into());
        }
        if let Some((base, devices)) = &base
            && self.base_works(base.gateway, base.underlay.ifindex, devices, &mut observed.broken).await?
        {
            observed.tables.base = Some(base.clone());
        }
        self.observe_nodes(&mut observed)?;
        self.observe_ipcache(&mut observed)?;
        self.observe_services(&mut observed)?;
        if let Some(host) = links.iter().find(|link| link.name == HOST_DEVICE && link.is_ours()) {
            self.observe_routes(host, &mut observed).await?;
        }
        let mtu_bytes = base.map(|(base, _)| base.mtu_bytes);
        self.observe_endpoints(&links, mtu_bytes, &mut observed).await?;
        Ok(observed)
    }

    async fn base_works(
        &self,
        gateway: IpAddr,
        underlay: u32,
        devices: &BaseDevices,
        broken: &mut Vec<String>,
    ) -> Result<bool, DatapathError> {
        let before = broken.len();
        if self.netlink.addresses(devices.host.index).await? != [IpNetwork::from(gateway)] {
            broken.push(format!("{HOST_DEVICE}: its address is not {gateway}"));
        }
        if sysctl::filters_all_reverse_paths()? {
            broken.push(
                "net.ipv4.conf.all.rp_filter is not 0: endpoints' packets to the stack are dropped".into(),
            );
        }
        for link in [Some(&devices.host), devices.vxlan.as_ref()].into_iter().flatten() {
            self.check_hooks(link, programs_of(&link.name), broken).await?;
        }
        if let Some(underlay) = self.netlink.link_at(underlay).await? {
            self.check_hooks(&underlay, UNDERLAY_PROGRAMS, broken).await?;
            broken.extend(self.missing_before_stack(&underlay));
        }
        broken.extend(self.sockets.damage(&self.hooks, &self.maps)?);
        Ok(broken.len() == before)
    }

    /// Names the programs that a device should have and has not.
    async fn check_hooks(
        &self,
        link: &Link,
        programs: &[Program],
        broken: &mut Vec<String>,
    ) -> Result<(), DatapathError> {
        for program in programs {
            if !self.hooks.is_attached(&self.netlink, link, *program).await? {
                broken.push(format!("{}: program {} is not attached", link.name, program.name()));
            }
        }
        Ok(())
    }

    fn observe_nodes(&self, observed: &mut Observed) -> Result<(), DatapathError> {
        let mut senders: BTreeMap<u32, BTreeSet<V4>> = BTreeMap::new();
        for (address, index) in self.maps.node_by_address_v4.dump()? {
            senders.entry(index).or_default().insert(address);
        }
        let mut nodes: BTreeMap<u32, Option<IpAddr>> = senders.keys().map(|index| (*index, None)).collect();
        self.maps.nodes.for_each(|index, entry| {
            if entry.family != 0 {
                nodes.insert(*index, Some(Ipv6Addr::from(entry.underlay).to_canonical()));
            }
        })?;
        for (index, underlay) in nodes {
            let senders = senders.remove(&index).unwrap_or_default();
            let whole = match underlay {
                Some(IpAddr::V4(address)) => senders == BTreeSet::from([address.octets()]),
                _ => false,
            };
            if !whole {
                observed
                    .broken
                    .push(format!("node {index}: sent to at {underlay:?}, accepted from {senders:?}"));
            }
            let underlay = underlay.filter(|_| whole).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            observed.tables.nodes.insert(NodeIndex(index), NodeValue { underlay });
        }
        Ok(())
    }

    fn observe_ipcache(&self, observed: &mut Observed) -> Result<(), DatapathError> {
        let ipcache = &mut observed.tables.ipcache;
        self.maps.ipcache_v4.for_each(|address, entry| {
            ipcache.insert(IpNetwork::from(IpAddr::from(*address)), ipcache_value(entry));
        })?;
        self.maps.ipcache_lpm_v4.for_each(|key, entry| {
            let network =
                u8::try_from(key.prefix_len).ok().map(|len| Ipv4Network::new(key.address.into(), len));
            if let Some(Ok(network)) = network {
                ipcache.insert(network.into(), ipcache_value(entry));
            }
        })
    }

    async fn observe_routes(&self, host: &Link, observed: &mut Observed) -> Result<(), DatapathError> {
        for route in route::list(&self.netlink, self.config.route_protocol).await? {
            let next_hop = route.gateway.map(|address| NextHop { address, ifindex: route.device });
            match (route.source, route.mtu_bytes) {
                (Some(source), Some(mtu_bytes)) if next_hop.is_some() || route.device == host.index => {
                    let value = RouteValue { next_hop, source, mtu_bytes };
                    observed.tables.routes.insert(route.destination, value);
                }
                _ => {
                    observed.broken.push(format!("route {}: not as we make them", route.destination));
                    // Wanted by nobody: rewritten or removed.
                    let source = Ipv4Addr::UNSPECIFIED.into();
                    let nothing = RouteValue { next_hop: None, source, mtu_bytes: 0 };
                    observed.tables.routes.insert(route.destination, nothing);
                }
            }
        }
        Ok(())
    }

    async fn observe_endpoints(
        &self,
        links: &[Link],
        mtu_bytes: Option<u32>,
        observed: &mut Observed,
    ) -> Result<(), DatapathError> {
        let by_address: BTreeMap<V4, EndpointEntry> = self.maps.endpoints_v4.dump()?.into_iter().collect();
        let by_ifindex: BTreeMap<u32, EndpointEntry> =
            self.maps.endpoints_by_ifindex.dump()?.into_iter().collect();
        let devices: BTreeMap<EndpointId, &Link> =
            links.iter().filter_map(|link| Some((link.endpoint()?, link))).collect();

        let in_maps = by_address.values().chain(by_ifindex.values()).map(|entry| EndpointId(entry.id));
        let mut ids: BTreeSet<EndpointId> = devices.keys().copied().chain(in_maps).collect();
        for pin in self.hooks.link_pins()? {
            ids.extend(device::endpoint_of(&pin.device));
        }
        let lost = self.sockets.lost(&self.maps)?;
        for id in &ids {
            let before = observed.broken.len();
            let value = match devices.get(id) {
                None => {
                    observed.broken.push(format!("endpoint {id}: its device is gone"));
                    None
                }
                Some(link) => {
                    if mtu_bytes.is_some_and(|mtu_bytes| link.mtu_bytes != mtu_bytes) {
                        observed.broken.push(format!("endpoint {id}: its MTU is {}", link.mtu_bytes));
                    }
                    if lost.contains(id) {
                        observed
                            .broken
                            .push(format!("endpoint {id}: its network namespace is not in the maps"));
                    }
                    self.check_hooks(link, programs_of(&link.name), &mut observed.broken).await?;
                    check_entries(*id, link, &by_ifindex, &by_address, &mut observed.broken)
                }
            };
            if let (Some(value), true) = (value, observed.broken.len() == before) {
                observed.tables.endpoints.insert(*id, value);
            }
        }
        observed.endpoint_devices = ids.into_iter().collect();
        Ok(())
    }
}

/// The endpoint that the maps hold for a device, if they agree about it.
pub(crate) fn check_entries(
    id: EndpointId,
    link: &Link,
    by_ifindex: &BTreeMap<u32, EndpointEntry>,
    by_address: &BTreeMap<V4, EndpointEntry>,
    broken: &mut Vec<String>,
) -> Option<EndpointValue> {
    let Some(entry) = by_ifindex.get(&link.index).filter(|entry| entry.id == id.0) else {
        broken.push(format!("endpoint {id}: interface {} is not in the maps", link.index));
        return None;
    };
    let addresses = by_address.values().filter(|other| other.id == id.0).count();
    if by_address.get(&entry.address_v4) != Some(entry) || addresses != 1 {
        broken.push(format!(
            "endpoint {id}: its address {} is not in the maps",
            Ipv4Addr::from(entry.address_v4)
        ));
    }
    if by_ifindex.values().filter(|other| other.id == id.0).count() != 1 {
        broken.push(format!("endpoint {id}: has more than one interface in the maps"));
    }
    if !link.up || link.mac != Some(Mac(entry.host_mac)) {
        broken.push(format!("endpoint {id}: device {} is down or has another Ethernet address", link.name));
    }
    Some(EndpointValue {
        address: Ipv4Addr::from(entry.address_v4).into(),
        identity: identity(entry.identity),
        mac: Mac(entry.mac),
        host_mac: Mac(entry.host_mac),
        attachment: None,
    })
}

pub(crate) fn ipcache_value(entry: &IpcacheEntry) -> IpcacheValue {
    IpcacheValue { identity: identity(entry.identity), node: NodeIndex(entry.node) }
}

/// A number that is none reads as unknown: never wanted of an endpoint, and rewritten in the ipcache.
fn identity(number: u32) -> Identity {
    Identity::new(number).unwrap_or(Identity::UNKNOWN)
}
