//! What a node tells of backends that are not well, packed into one gossip value: by service, as it names many once.

use std::{collections::BTreeMap, net::IpAddr};

use identity::ServiceName;
use serde::{Deserialize, Serialize};

use crate::{Unwell, codec::FACTS_VERSION};

/// The key of the value. It is there while something is not well.
pub const UNWELL_KEY: &str = "unwell";

type Services = BTreeMap<ServiceName, Vec<(IpAddr, u16, String)>>;

#[derive(Serialize, Deserialize)]
pub(crate) struct UnwellValue {
    pub v: u32,
    /// The digest of the services' text, by which the `facts` that belong to it name it.
    pub set: String,
    services: Services,
}

/// Packs; `digest` is that of a text. Stable: equal backends in equal order give an equal value.
pub(crate) fn pack(unwell: &[Unwell], digest: impl Fn(&str) -> String) -> UnwellValue {
    let mut services = Services::new();
    for Unwell { service, address, port, why } in unwell {
        services.entry(service.clone()).or_default().push((*address, *port, why.clone()));
    }
    let text = serde_json::to_string(&services).expect("names, addresses, numbers and texts");
    UnwellValue { v: FACTS_VERSION, set: digest(&text), services }
}

/// Unpacks, by service.
pub(crate) fn unpack(value: UnwellValue) -> Vec<Unwell> {
    let backends = |(service, backends): (ServiceName, Vec<(IpAddr, u16, String)>)| {
        let backend = move |(address, port, why)| Unwell { service: service.clone(), address, port, why };
        backends.into_iter().map(backend)
    };
    value.services.into_iter().flat_map(backends).collect()
}
