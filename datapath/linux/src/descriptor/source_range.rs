//! Source ranges of services: the networks that external clients may come from. One trie for all services, which holds
//! exactly the prefixes of their rows.

use std::collections::{BTreeMap, BTreeSet};

use datapath_abi::{LpmKey, SOURCE_SERVICE_BITS, Source, V4};
use datapath_plan::ServiceId;
use ipnetwork::{IpNetwork, Ipv4Network};

use super::{Answer, Maps, first_failure};
use crate::error::DatapathError;

/// A prefix of a service port.
pub(crate) type Key = LpmKey<Source<V4>>;

/// Source ranges as keys.
///
/// # Errors
/// [`DatapathError::Unsupported`] for a range of IPv6.
pub(crate) fn keys(service: ServiceId, ranges: &[IpNetwork]) -> Result<Vec<Key>, DatapathError> {
    let key = |range: &IpNetwork| match range {
        IpNetwork::V4(network) => Ok(LpmKey {
            prefix_len: SOURCE_SERVICE_BITS + u32::from(network.prefix()),
            address: Source { service: service.0, address: network.network().octets() },
        }),
        IpNetwork::V6(_) => Err(DatapathError::Unsupported(format!("IPv6 source range {range}"))),
    };
    ranges.iter().map(key).collect()
}

/// The range of a key; `None` if it cannot be decoded.
pub(crate) fn range(key: &Key) -> Option<IpNetwork> {
    let prefix = u8::try_from(key.prefix_len.checked_sub(SOURCE_SERVICE_BITS)?).ok()?;
    Ipv4Network::new(key.address.address.into(), prefix).ok().map(IpNetwork::V4)
}

/// The ranges of all services, sorted.
pub(crate) fn observe(maps: &Maps) -> Result<BTreeMap<u32, Vec<IpNetwork>>, DatapathError> {
    let mut ranges: BTreeMap<u32, Vec<IpNetwork>> = BTreeMap::new();
    maps.sources_lpm_v4.for_each(|key, _| {
        ranges.entry(key.address.service).or_default().extend(range(key));
    })?;
    ranges.values_mut().for_each(|ranges| ranges.sort_unstable());
    Ok(ranges)
}

/// Deletes the prefixes of these service ports that are not in `keep`. One reading of the map.
pub(crate) fn keep_only(maps: &Maps, services: &BTreeSet<u32>, keep: &[Key]) -> Answer {
    if services.is_empty() {
        return Ok(());
    }
    let keep: BTreeSet<_> = keep.iter().map(|key| (key.address, key.prefix_len)).collect();
    let mut stale = Vec::new();
    maps.sources_lpm_v4.for_each(|key, _| {
        if services.contains(&key.address.service) && !keep.contains(&(key.address, key.prefix_len)) {
            stale.push(*key);
        }
    })?;
    first_failure(maps.sources_lpm_v4.delete_all(&stale))
}
