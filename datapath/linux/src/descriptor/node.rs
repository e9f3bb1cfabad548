//! Nodes: an array by index for packets that go there, and a hash map by underlay address for packets that come.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use datapath_abi::{NodeEntry, V4};
use datapath_plan::{NodeIndex, NodeValue};

use super::{Answer, KernelTable, Observation, Progress, first_failure, repeat, v4};
use crate::{datapath::Datapath, error::DatapathError};

impl KernelTable for NodeValue {
    async fn put(datapath: &mut Datapath, rows: &[(NodeIndex, &Self)], _: &Progress<'_>) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::with_capacity(rows.len());
        let mut addresses = BTreeMap::new();
        for (index, value) in rows {
            answers.push(write(datapath, *index, value).map(|address| {
                addresses.insert(index.0, Some(address));
            }));
        }
        match forget_senders(datapath, &addresses) {
            Ok(()) => answers,
            Err(error) => repeat(rows.len(), &error),
        }
    }

    async fn delete(datapath: &mut Datapath, indexes: &[NodeIndex]) -> Vec<Answer> {
        // First: nothing more is accepted from these nodes.
        if let Err(error) = forget_senders(datapath, &indexes.iter().map(|index| (index.0, None)).collect()) {
            return repeat(indexes.len(), &error);
        }
        indexes.iter().map(|index| datapath.maps.nodes.delete(&index.0)).collect()
    }

    /// A node of which only one direction is there shows an address that nobody wants.
    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let observed = &mut observation.observed;
        let mut senders: BTreeMap<u32, BTreeSet<V4>> = BTreeMap::new();
        datapath.maps.node_by_address_v4.for_each(|address, index| {
            senders.entry(*index).or_default().insert(*address);
        })?;
        let mut nodes: BTreeMap<u32, Option<IpAddr>> = senders.keys().map(|index| (*index, None)).collect();
        datapath.maps.nodes.for_each_entry(|index, entry| {
            nodes.insert(*index, Some(Ipv6Addr::from(entry.underlay).to_canonical()));
        })?;
        for (index, underlay) in nodes {
            let senders = senders.remove(&index).unwrap_or_default();
            let is_whole = match underlay {
                Some(IpAddr::V4(address)) => senders == BTreeSet::from([address.octets()]),
                _ => false,
            };
            if !is_whole {
                observed
                    .broken
                    .push(format!("node {index}: sent to at {underlay:?}, accepted from {senders:?}"));
            }
            let underlay = underlay.filter(|_| is_whole).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            observed.tables.nodes.insert(NodeIndex(index), Self { underlay });
        }
        Ok(())
    }
}

fn write(datapath: &Datapath, index: NodeIndex, value: &NodeValue) -> Result<V4, DatapathError> {
    let address = v4(value.underlay)?;
    let underlay = Ipv4Addr::from(address).to_ipv6_mapped().octets();
    datapath.maps.nodes.put(&index.0, &NodeEntry { underlay, family: 4 })?;
    datapath.maps.node_by_address_v4.put(&address, &index.0)?;
    Ok(address)
}

/// Takes away the addresses that tunnel packets of these nodes are accepted from, but for the address beside each index.
/// One reading of the map for all.
fn forget_senders(datapath: &Datapath, nodes: &BTreeMap<u32, Option<V4>>) -> Answer {
    let mut stale = Vec::new();
    datapath.maps.node_by_address_v4.for_each(|address, owner| {
        if nodes.get(owner).is_some_and(|keep| *keep != Some(*address)) {
            stale.push(*address);
        }
    })?;
    first_failure(datapath.maps.node_by_address_v4.delete_all(&stale))
}
