//! The records of services: what is wanted, and whose each virtual IP is.

use std::net::IpAddr;

use identity::ServiceName;
use serde::{Deserialize, Serialize};

use super::{ServiceSpec, VirtualIp};
use crate::record::{Record, RecordError, Unknown};

/// `services/<name>`: written by whoever applies a manifest, by compare-and-set on its modify revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ServiceRecord {
    /// What was asked for, normalised.
    pub spec: ServiceSpec,
    /// The address that was claimed for it: `vips/<address>` is this service's.
    pub virtual_ip: IpAddr,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `vips/<address>`: whose a virtual IP is. Made and deleted in one transaction with its service's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct VipRecord {
    /// The service.
    pub service: ServiceName,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Record for ServiceRecord {
    fn validate(&self) -> Result<(), RecordError> {
        self.spec.validate().map_err(|error| RecordError::Invalid(error.to_string()))?;
        match self.spec.virtual_ip {
            VirtualIp::Address(wanted) if wanted != self.virtual_ip => Err(RecordError::Invalid(format!(
                "virtual_ip {} is not the one that the spec wants, {wanted}",
                self.virtual_ip
            ))),
            _ if !self.virtual_ip.is_ipv4() => {
                Err(RecordError::Invalid(format!("virtual_ip {}: not there yet: IPv6", self.virtual_ip)))
            }
            VirtualIp::Auto | VirtualIp::Address(_) => Ok(()),
        }
    }
}

impl Record for VipRecord {}
