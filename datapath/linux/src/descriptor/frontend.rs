//! Frontends: a hash map, and a bit for each port at which there is or was one, so that packets to other ports are not
//! looked up.

use std::collections::BTreeMap;

use datapath_abi::{FrontendEntry, FrontendKey, V4, frontend_kind, service_port_bit};
use datapath_plan::{Frontend, FrontendKind, FrontendValue, Protocol, ServiceId};

use super::{Answer, KernelTable, Observation, Progress, delete_each, put_each, repeat, v4};
use crate::{datapath::Datapath, error::DatapathError};

impl KernelTable for FrontendValue {
    async fn put(datapath: &mut Datapath, rows: &[(Frontend, &Self)], _: &Progress<'_>) -> Vec<Answer> {
        if let Err(error) = open_ports(datapath, rows.iter().map(|(frontend, _)| frontend)) {
            return repeat(rows.len(), &error);
        }
        let entry = |(frontend, value): &(Frontend, &Self)| {
            let entry = FrontendEntry { service: value.service.0, kind: encode_kind(value.kind) };
            Ok((encode_key(frontend)?, entry))
        };
        put_each(&datapath.maps.frontends_v4, rows.iter().map(entry))
    }

    async fn delete(datapath: &mut Datapath, frontends: &[Frontend]) -> Vec<Answer> {
        delete_each(&datapath.maps.frontends_v4, frontends.iter().map(encode_key))
    }

    /// A frontend whose port has no bit is not there: packets to it are not looked up.
    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let words: BTreeMap<u32, u64> = datapath.maps.service_ports.dump()?.into_iter().collect();
        let frontends = &mut observation.observed.tables.frontends;
        datapath.maps.frontends_v4.for_each(|key, entry| {
            let (word, bit) = port_bit(key);
            let is_open = words.get(&word).is_some_and(|bits| bits & bit != 0);
            if let (Some(frontend), Some(kind), true) = (decode_key(key), decode_kind(entry.kind), is_open) {
                frontends.insert(frontend, FrontendValue { service: ServiceId(entry.service), kind });
            }
        })
    }
}

/// Lets packets from outside to these ports be looked up.
fn open_ports<'a>(datapath: &Datapath, frontends: impl Iterator<Item = &'a Frontend>) -> Answer {
    let mut words: BTreeMap<u32, u64> = BTreeMap::new();
    for key in frontends.filter_map(|frontend| encode_key(frontend).ok()) {
        let (word, bit) = port_bit(&key);
        *words.entry(word).or_default() |= bit;
    }
    for (word, bits) in words {
        let before = datapath.maps.service_ports.get(&word)?.unwrap_or_default();
        if before & bits != bits {
            datapath.maps.service_ports.put(&word, &(before | bits))?;
        }
    }
    Ok(())
}

fn port_bit(key: &FrontendKey<V4>) -> (u32, u64) {
    service_port_bit(key.protocol, u16::from_be_bytes(key.port_be))
}

fn encode_key(frontend: &Frontend) -> Result<FrontendKey<V4>, DatapathError> {
    let protocol = frontend.protocol.number();
    let port_be = frontend.port.to_be_bytes();
    Ok(FrontendKey { address: v4(frontend.address)?, port_be, protocol, pad: 0 })
}

pub(crate) fn decode_key(key: &FrontendKey<V4>) -> Option<Frontend> {
    let protocol = Protocol::from_number(key.protocol)?;
    Some(Frontend { address: key.address.into(), port: u16::from_be_bytes(key.port_be), protocol })
}

const fn encode_kind(kind: FrontendKind) -> u32 {
    match kind {
        FrontendKind::Virtual => frontend_kind::VIRTUAL,
        FrontendKind::External => frontend_kind::EXTERNAL,
        FrontendKind::NodePort => frontend_kind::NODE_PORT,
        FrontendKind::HostPort => frontend_kind::HOST_PORT,
    }
}

pub(crate) fn decode_kind(number: u32) -> Option<FrontendKind> {
    FrontendKind::ALL.into_iter().find(|kind| encode_kind(*kind) == number)
}
