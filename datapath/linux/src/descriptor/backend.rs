//! Backends: an array by number.

use datapath_abi::{BackendEntry, V4, backend_flags};
use datapath_plan::{BackendId, BackendState, BackendValue, ServiceId};

use super::{Maps, OneMap, v4};
use crate::{error::DatapathError, table::Table};

impl OneMap for BackendValue {
    type MapKey = u32;
    type MapValue = BackendEntry<V4>;

    fn map(maps: &Maps) -> &Table<u32, BackendEntry<V4>> {
        &maps.backends_v4
    }

    fn encode_key(id: &BackendId) -> Result<u32, DatapathError> {
        Ok(id.0)
    }

    fn encode(&self) -> Result<BackendEntry<V4>, DatapathError> {
        Ok(BackendEntry {
            service: self.service.0,
            address: v4(self.address)?,
            port_be: self.port.to_be_bytes(),
            weight: self.weight,
            flags: match self.state {
                BackendState::Active => 0,
                BackendState::Terminating => backend_flags::TERMINATING,
                BackendState::Unhealthy => backend_flags::UNHEALTHY,
            },
            pad: [0; 3],
        })
    }

    fn decode(id: &u32, entry: &BackendEntry<V4>) -> Option<(BackendId, Self)> {
        (entry.service != 0).then(|| (BackendId(*id), decode(entry)))
    }
}

pub(crate) fn decode(entry: &BackendEntry<V4>) -> BackendValue {
    BackendValue {
        service: ServiceId(entry.service),
        address: entry.address.into(),
        port: u16::from_be_bytes(entry.port_be),
        weight: entry.weight,
        state: match entry.flags {
            0 => BackendState::Active,
            flags if flags & backend_flags::TERMINATING != 0 => BackendState::Terminating,
            _ => BackendState::Unhealthy,
        },
    }
}
