//! The ipcache: whole addresses in a hash map, prefixes in an LPM trie.

use std::net::IpAddr;

use datapath_abi::{IpcacheEntry, LpmKey, V4};
use datapath_plan::{IpcacheValue, NodeIndex};
use identity::Identity;
use ipnetwork::IpNetwork;

use super::{Answer, KernelTable, Observation, Progress, lpm_key, network};
use crate::{datapath::Datapath, error::DatapathError};

impl KernelTable for IpcacheValue {
    async fn put(datapath: &mut Datapath, rows: &[(IpNetwork, &Self)], _: &Progress<'_>) -> Vec<Answer> {
        let entry = |value: &Self| IpcacheEntry { identity: value.identity.get(), node: value.node.0 };
        let mut split = Split::new(rows.iter().map(|(prefix, value)| (*prefix, entry(value))));
        split.exact.fail(&mut split.answers, |entries| datapath.maps.ipcache_v4.put_all(entries));
        split.prefixes.fail(&mut split.answers, |entries| datapath.maps.ipcache_lpm_v4.put_all(entries));
        split.answers
    }

    async fn delete(datapath: &mut Datapath, prefixes: &[IpNetwork]) -> Vec<Answer> {
        let mut split = Split::new(prefixes.iter().map(|prefix| (*prefix, ())));
        split.exact.fail(&mut split.answers, |keys| datapath.maps.ipcache_v4.delete_all(&only_keys(keys)));
        split
            .prefixes
            .fail(&mut split.answers, |keys| datapath.maps.ipcache_lpm_v4.delete_all(&only_keys(keys)));
        split.answers
    }

    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let ipcache = &mut observation.observed.tables.ipcache;
        datapath.maps.ipcache_v4.for_each(|address, entry| {
            ipcache.insert(IpNetwork::from(IpAddr::from(*address)), decode(entry));
        })?;
        datapath.maps.ipcache_lpm_v4.for_each(|key, entry| {
            if let Some(network) = network(key) {
                ipcache.insert(network, decode(entry));
            }
        })
    }
}

/// An identity that is out of range reads as unknown, and is rewritten.
pub(crate) fn decode(entry: &IpcacheEntry) -> IpcacheValue {
    let identity = Identity::new(entry.identity).unwrap_or(Identity::UNKNOWN);
    IpcacheValue { identity, node: NodeIndex(entry.node) }
}

/// Steps by the map that they concern.
struct Split<T> {
    exact: Part<V4, T>,
    prefixes: Part<LpmKey<V4>, T>,
    answers: Vec<Answer>,
}

/// The entries of one map, and the place of each in the steps.
struct Part<K, T> {
    entries: Vec<(K, T)>,
    places: Vec<usize>,
}

impl<T> Split<T> {
    fn new(steps: impl Iterator<Item = (IpNetwork, T)>) -> Self {
        let mut split = Self { exact: Part::new(), prefixes: Part::new(), answers: Vec::new() };
        for (place, (prefix, value)) in steps.enumerate() {
            split.answers.push(match prefix {
                IpNetwork::V4(network) if network.prefix() == 32 => {
                    split.exact.add(place, network.ip().octets(), value);
                    Ok(())
                }
                IpNetwork::V4(network) => {
                    split.prefixes.add(place, lpm_key(network), value);
                    Ok(())
                }
                IpNetwork::V6(_) => Err(DatapathError::Unsupported(format!("IPv6 prefix {prefix}"))),
            });
        }
        split
    }
}

impl<K, T> Part<K, T> {
    const fn new() -> Self {
        Self { entries: Vec::new(), places: Vec::new() }
    }

    fn add(&mut self, place: usize, key: K, value: T) {
        self.entries.push((key, value));
        self.places.push(place);
    }

    /// Does something with all entries, and puts its failures among the answers.
    fn fail(&self, answers: &mut [Answer], all: impl FnOnce(&[(K, T)]) -> Vec<(usize, DatapathError)>) {
        for (index, error) in all(&self.entries) {
            answers[self.places[index]] = Err(error);
        }
    }
}

fn only_keys<K: Copy>(entries: &[(K, ())]) -> Vec<K> {
    entries.iter().map(|(key, ())| *key).collect()
}
