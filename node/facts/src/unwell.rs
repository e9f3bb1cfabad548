//! The unhealthy backends of a node, packed into one gossip value: grouped by service, as a node lists many of one.

use std::{collections::BTreeMap, net::IpAddr};

use identity::ServiceName;
use serde::{Deserialize, Serialize};

use crate::{Unwell, codec::FACTS_VERSION};

/// The key of the value, which exists while a backend is unhealthy.
pub const UNWELL_KEY: &str = "unwell";

type Services = BTreeMap<ServiceName, Vec<(IpAddr, u16, String)>>;

#[derive(Serialize, Deserialize)]
pub(crate) struct UnwellValue {
    pub v: u32,
    /// The digest of the services' text, by which the matching `facts` name it.
    pub set: String,
    services: Services,
}

/// Packs the backends; `digest` computes the digest of a text. Stable: equal backends in equal order give an equal
/// value.
pub(crate) fn pack(unwell: &[Unwell], digest: impl Fn(&str) -> String) -> UnwellValue {
    let mut services = Services::new();
    for Unwell { service, address, port, why } in unwell {
        services.entry(service.clone()).or_default().push((*address, *port, why.clone()));
    }
    let text = serde_json::to_string(&services).expect("names, addresses, numbers and texts");
    UnwellValue { v: FACTS_VERSION, set: digest(&text), services }
}

/// Unpacks the backends, by service.
pub(crate) fn unpack(value: UnwellValue) -> Vec<Unwell> {
    let backends = |(service, backends): (ServiceName, Vec<(IpAddr, u16, String)>)| {
        let backend = move |(address, port, why)| Unwell { service: service.clone(), address, port, why };
        backends.into_iter().map(backend)
    };
    value.services.into_iter().flat_map(backends).collect()
}
