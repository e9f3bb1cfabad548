//! Endpoints: a device and its programs each, and the same entry in two maps, by interface and by address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use datapath_abi::{EndpointEntry, V4};
use datapath_plan::{EndpointId, EndpointValue, Mac};
use identity::Identity;

use super::{Answer, KernelTable, Maps, Observation, Progress, repeat};
use crate::{
    datapath::Datapath,
    device,
    endpoint::{EndpointAttacher, PodNetwork},
    error::DatapathError,
    hook::programs_of,
    netlink::Link,
};

impl KernelTable for EndpointValue {
    async fn put(datapath: &mut Datapath, rows: &[(EndpointId, &Self)], _: &Progress<'_>) -> Vec<Answer> {
        let network = match pod_network(datapath) {
            Ok(network) => network,
            Err(error) => return repeat(rows.len(), &error),
        };
        let mut answers = Vec::with_capacity(rows.len());
        for (id, value) in rows {
            answers.push(attacher(datapath).put(*id, value, &network).await);
        }
        answers
    }

    async fn delete(datapath: &mut Datapath, ids: &[EndpointId]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(ids.len());
        for id in ids {
            answers.push(attacher(datapath).delete(*id).await);
        }
        answers
    }

    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let Observation { observed, links, base } = observation;
        let maps = EntriesOfBothMaps::read(&datapath.maps)?;
        datapath.endpoint_keys = maps.keys();
        let mtu_bytes = base.as_ref().map(|(base, _)| base.mtu_bytes);
        let devices: BTreeMap<EndpointId, &Link> =
            links.iter().filter_map(|link| Some((link.endpoint()?, link))).collect();
        let in_maps = maps.by_address.values().chain(maps.by_ifindex.values());
        let in_maps = in_maps.map(|entry| EndpointId(entry.id));
        let mut ids: BTreeSet<EndpointId> = devices.keys().copied().chain(in_maps).collect();
        for pin in datapath.hooks.link_pins()? {
            ids.extend(device::endpoint_of(&pin.device));
        }
        let lost = datapath.sockets.lost(&datapath.maps)?;
        for id in &ids {
            let before = observed.broken.len();
            let Some(link) = devices.get(id) else {
                observed.broken.push(format!("endpoint {id}: its device is gone"));
                continue;
            };
            if mtu_bytes.is_some_and(|mtu_bytes| link.mtu_bytes != mtu_bytes) {
                observed.broken.push(format!("endpoint {id}: its MTU is {}", link.mtu_bytes));
            }
            if lost.contains(id) {
                observed.broken.push(format!("endpoint {id}: its network namespace is not in the maps"));
            }
            datapath.check_hooks(link, programs_of(&link.name), &mut observed.broken).await?;
            let value = maps.check(*id, link, &mut observed.broken);
            if let (Some(value), true) = (value, observed.broken.len() == before) {
                observed.tables.endpoints.insert(*id, value);
            }
        }
        observed.endpoint_devices = ids.into_iter().collect();
        Ok(())
    }
}

fn attacher(datapath: &mut Datapath) -> EndpointAttacher<'_> {
    EndpointAttacher {
        netlink: &datapath.netlink,
        maps: &datapath.maps,
        keys: &mut datapath.endpoint_keys,
        hooks: &mut datapath.hooks,
        sockets: &mut datapath.sockets,
    }
}

/// From the configuration, which is written once the node's own devices are there.
fn pod_network(datapath: &Datapath) -> Result<PodNetwork, DatapathError> {
    match datapath.maps.config.get(&0)? {
        Some(config) if config.host_ifindex != 0 => {
            Ok(PodNetwork { gateway: config.gateway_v4.into(), mtu_bytes: config.pod_mtu_bytes })
        }
        _ => Err(DatapathError::NotReady("the node's own devices are not there yet".into())),
    }
}

/// The keys under which the maps hold each endpoint, so that an attachment need not read the maps to find entries that
/// are out of date.
#[derive(Debug, Default)]
pub(crate) struct EndpointKeys {
    by_id: BTreeMap<u32, Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    ifindexes: BTreeSet<u32>,
    addresses: BTreeSet<V4>,
}

impl EndpointKeys {
    /// From what the kernel holds.
    pub(crate) fn adopt(maps: &Maps) -> Result<Self, DatapathError> {
        Ok(EntriesOfBothMaps::read(maps)?.keys())
    }

    /// Writes an endpoint's entry into both maps, and deletes its other entries.
    pub(crate) fn put(&mut self, maps: &Maps, entry: &EndpointEntry) -> Answer {
        let keys = self.by_id.entry(entry.id).or_default();
        keys.ifindexes.insert(entry.ifindex);
        keys.addresses.insert(entry.address_v4);
        maps.endpoints_by_ifindex.put(&entry.ifindex, entry)?;
        maps.endpoints_v4.put(&entry.address_v4, entry)?;
        self.clear(maps, EndpointId(entry.id), Some(entry))
    }

    /// Deletes an endpoint's entries from both maps, but for `keep`. An entry that has become another endpoint's stays.
    pub(crate) fn clear(&mut self, maps: &Maps, id: EndpointId, keep: Option<&EndpointEntry>) -> Answer {
        let Some(keys) = self.by_id.get_mut(&id.0) else { return Ok(()) };
        let is_ours = |entry: Option<EndpointEntry>| entry.is_some_and(|entry| entry.id == id.0);
        for address in &keys.addresses {
            if keep.is_none_or(|keep| keep.address_v4 != *address) && is_ours(maps.endpoints_v4.get(address)?)
            {
                maps.endpoints_v4.delete(address)?;
            }
        }
        for ifindex in &keys.ifindexes {
            if keep.is_none_or(|keep| keep.ifindex != *ifindex)
                && is_ours(maps.endpoints_by_ifindex.get(ifindex)?)
            {
                maps.endpoints_by_ifindex.delete(ifindex)?;
            }
        }
        match keep {
            Some(keep) => {
                keys.addresses.retain(|address| *address == keep.address_v4);
                keys.ifindexes.retain(|ifindex| *ifindex == keep.ifindex);
            }
            None => drop(self.by_id.remove(&id.0)),
        }
        Ok(())
    }
}

/// What both endpoint maps hold.
pub(crate) struct EntriesOfBothMaps {
    pub by_ifindex: BTreeMap<u32, EndpointEntry>,
    pub by_address: BTreeMap<V4, EndpointEntry>,
}

impl EntriesOfBothMaps {
    fn read(maps: &Maps) -> Result<Self, DatapathError> {
        Ok(Self {
            by_ifindex: maps.endpoints_by_ifindex.dump()?.into_iter().collect(),
            by_address: maps.endpoints_v4.dump()?.into_iter().collect(),
        })
    }

    fn keys(&self) -> EndpointKeys {
        let mut by_id: BTreeMap<u32, Keys> = BTreeMap::new();
        for (ifindex, entry) in &self.by_ifindex {
            by_id.entry(entry.id).or_default().ifindexes.insert(*ifindex);
        }
        for (address, entry) in &self.by_address {
            by_id.entry(entry.id).or_default().addresses.insert(*address);
        }
        EndpointKeys { by_id }
    }

    /// The endpoint that the maps hold for a device. What does not fit together is named in `broken`.
    pub(crate) fn check(
        &self,
        id: EndpointId,
        link: &Link,
        broken: &mut Vec<String>,
    ) -> Option<EndpointValue> {
        let Some(entry) = self.by_ifindex.get(&link.index).filter(|entry| entry.id == id.0) else {
            broken.push(format!("endpoint {id}: interface {} is not in the maps", link.index));
            return None;
        };
        let address = Ipv4Addr::from(entry.address_v4);
        let addresses = self.by_address.values().filter(|other| other.id == id.0).count();
        if self.by_address.get(&entry.address_v4) != Some(entry) || addresses != 1 {
            broken.push(format!("endpoint {id}: its address {address} is not in the maps"));
        }
        if self.by_ifindex.values().filter(|other| other.id == id.0).count() != 1 {
            broken.push(format!("endpoint {id}: has more than one interface in the maps"));
        }
        if !link.up || link.mac != Some(Mac(entry.host_mac)) {
            broken
                .push(format!("endpoint {id}: device {} is down or has another Ethernet address", link.name));
        }
        Some(EndpointValue {
            address: address.into(),
            // A number out of range reads as unknown, which no endpoint is wanted with.
            identity: Identity::new(entry.identity).unwrap_or(Identity::UNKNOWN),
            mac: Mac(entry.mac),
            host_mac: Mac(entry.host_mac),
            attachment: None,
        })
    }
}
