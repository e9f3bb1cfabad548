//! Numbers of service ports and backends in this node's kernel: existing ones are recognised by what they stand for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use datapath_plan::{BackendId, Frontend, FrontendKind, ServiceId, Tables};
use serde::{Deserialize, Serialize};

use super::v4;
use crate::context::Context;

/// Numbers assigned on this node. One per node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Numbers {
    last_service: u32,
    last_backend: u32,
    /// Backends that the kernel had at the start, and that have not been asked for since.
    adopted: BTreeMap<(ServiceId, Ipv4Addr, u16), BackendId>,
    /// Service ports that the kernel had at the start and that have a virtual IP.
    adopted_virtual: BTreeSet<ServiceId>,
}

impl Numbers {
    /// Notes what the kernel has at the start.
    pub fn adopt(&mut self, tables: &Tables) {
        let backends = tables
            .backends
            .iter()
            .filter_map(|(id, value)| Some(((value.service, v4(value.address)?, value.port), *id)));
        self.adopted = backends.collect();
        let frontends = tables.frontends.values().filter(|value| value.kind == FrontendKind::Virtual);
        self.adopted_virtual = frontends.map(|value| value.service).collect();
    }

    /// The backends of a service port that the kernel had at the start.
    pub fn adopted_of(&self, service: ServiceId) -> Vec<(Ipv4Addr, u16)> {
        let first = (service, Ipv4Addr::UNSPECIFIED, 0);
        let last = (service, Ipv4Addr::BROADCAST, u16::MAX);
        self.adopted.range(first..=last).map(|((_, address, port), _)| (*address, *port)).collect()
    }

    /// The number of the service port with these frontends: the kernel's, or the next one that nothing refers to.
    pub fn service(
        &mut self,
        cx: &Context,
        frontends: &BTreeMap<Frontend, FrontendKind>,
    ) -> Option<ServiceId> {
        let (wanted, applied) = (cx.kernel.wanted(), cx.kernel.applied());
        // A virtual IP identifies a number; other frontends identify only numbers without virtual IP.
        let adopted = |kind: FrontendKind| {
            let fits = |id: &ServiceId| {
                let own = kind == FrontendKind::Virtual || !self.adopted_virtual.contains(id);
                id.0 > 0 && own && !wanted.services.contains_key(id)
            };
            let same = frontends.iter().filter(move |(_, it)| **it == kind);
            same.filter_map(|(it, _)| Some(applied.frontends.get(it)?.service)).find(fits)
        };
        if let Some(id) = FrontendKind::ALL.into_iter().find_map(adopted) {
            return Some(id);
        }
        let free = next(self.last_service, ServiceId::LAST.0, |id| {
            !applied.services.contains_key(&ServiceId(id)) && !wanted.services.contains_key(&ServiceId(id))
        })?;
        self.last_service = free;
        Some(ServiceId(free))
    }

    /// The number of a backend: the kernel's, or the next one that nothing refers to. Flows refer to it, so a number that
    /// became free is used again only when all others have been.
    pub fn backend(
        &mut self,
        cx: &Context,
        service: ServiceId,
        (address, port): (Ipv4Addr, u16),
    ) -> Option<BackendId> {
        let adopted = self.adopted.remove(&(service, address, port));
        let (wanted, applied) = (&cx.kernel.wanted().backends, &cx.kernel.applied().backends);
        let same = |id: &BackendId| {
            applied
                .get(id)
                .is_some_and(|it| (it.service, it.address, it.port) == (service, address.into(), port))
        };
        if let Some(id) = adopted.filter(|id| same(id) && !wanted.contains_key(id)) {
            return Some(id);
        }
        let free = next(self.last_backend, BackendId::LAST.0, |id| {
            !applied.contains_key(&BackendId(id)) && !wanted.contains_key(&BackendId(id))
        })?;
        self.last_backend = free;
        Some(BackendId(free))
    }
}

/// The first free number after the last one assigned; numbers are 1 to `highest`.
fn next(last: u32, highest: u32, is_free: impl Fn(u32) -> bool) -> Option<u32> {
    (0..highest).map(|step| (last + step) % highest + 1).find(|id| is_free(*id))
}
