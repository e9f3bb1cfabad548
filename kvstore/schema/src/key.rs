//! Every key that Warren writes: the only place where keys are put together or taken apart.

use std::{fmt, net::IpAddr, sync::Arc};

use identity::{FleetName, Identity, LabelDigest, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::service::{ServiceClaim, ServiceProtocol};

/// The version of the key layout, in every key.
pub const LAYOUT: &str = "v1";

/// A whole key. Always text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Arc<str>);

/// The beginning of keys. Ends with `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Prefix(Arc<str>);

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// Takes a text without checking it: for stores and their tests. Everybody else asks [`Schema`].
            pub fn from_raw(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text's bytes.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_type!(Key);
text_type!(Prefix);

impl Prefix {
    /// Whether a key lies under this prefix.
    pub fn contains(&self, key: &Key) -> bool {
        key.0.starts_with(&*self.0)
    }

    /// The first text after every key with this prefix: etcd's range end.
    pub fn range_end(&self) -> Vec<u8> {
        let mut end = self.0.as_bytes().to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return end;
            }
        }
        vec![0]
    }
}

/// The keys of one fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    root: String,
}

/// A key taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParsedKey {
    /// `fleet`
    Fleet,
    /// `nodes/<node>`
    Node(NodeName),
    /// `alive/<node>`
    Alive(NodeName),
    /// `cidrs/<cidr>`
    Cidr(IpNetwork),
    /// `identities/labels/<digest>`
    IdentityLabels(LabelDigest),
    /// `identities/id/<id>`
    IdentityId(Identity),
    /// `identities/refs/<id>/<node>`
    IdentityRef(Identity, NodeName),
    /// `endpoints/<node>/<ip>`
    Endpoint(NodeName, IpAddr),
    /// `services/<name>`
    Service(ServiceName),
    /// `vips/<address>`, `frontends/<address>/<protocol>/<port>`
    ServiceClaim(ServiceClaim),
    /// `policies/<name>`
    Policy(String),
    /// `keyring`
    Keyring,
    /// `mark`
    Mark,
}

/// A key under the fleet's prefix that no record has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {key} is not one of Warren's: {reason}")]
pub struct KeyError {
    /// The key.
    pub key: String,
    /// The reason.
    pub reason: String,
}

impl Schema {
    /// The keys of a fleet.
    pub fn new(fleet: &FleetName) -> Self {
        Self { root: format!("/warren/{LAYOUT}/{fleet}/") }
    }

    fn key(&self, rest: fmt::Arguments<'_>) -> Key {
        Key(format!("{}{rest}", self.root).into())
    }

    fn prefix(&self, rest: fmt::Arguments<'_>) -> Prefix {
        Prefix(format!("{}{rest}", self.root).into())
    }

    /// Everything of the fleet.
    pub fn root(&self) -> Prefix {
        Prefix(self.root.as_str().into())
    }

    /// The fleet's own record.
    pub fn fleet(&self) -> Key {
        self.key(format_args!("fleet"))
    }

    /// The store's mark.
    pub fn mark(&self) -> Key {
        self.key(format_args!("mark"))
    }

    /// A node's record.
    pub fn node(&self, node: &NodeName) -> Key {
        self.key(format_args!("nodes/{node}"))
    }

    /// A node's liveness key, under its lease.
    pub fn alive(&self, node: &NodeName) -> Key {
        self.key(format_args!("alive/{node}"))
    }

    /// A claim on a pod CIDR; `/` of the CIDR is written `-`: `cidrs/10.1.2.0-24`.
    pub fn cidr(&self, cidr: IpNetwork) -> Key {
        self.key(format_args!("cidrs/{}-{}", cidr.network(), cidr.prefix()))
    }

    /// All claims on pod CIDRs.
    pub fn cidrs(&self) -> Prefix {
        self.prefix(format_args!("cidrs/"))
    }

    /// A label set's identity.
    pub fn identity_labels(&self, digest: &LabelDigest) -> Key {
        self.key(format_args!("identities/labels/{digest}"))
    }

    /// An identity's labels and state.
    pub fn identity_id(&self, identity: Identity) -> Key {
        self.key(format_args!("identities/id/{identity}"))
    }

    /// A node's use of an identity.
    pub fn identity_ref(&self, identity: Identity, node: &NodeName) -> Key {
        self.key(format_args!("identities/refs/{identity}/{node}"))
    }

    /// All uses of an identity.
    pub fn identity_refs(&self, identity: Identity) -> Prefix {
        self.prefix(format_args!("identities/refs/{identity}/"))
    }

    /// An endpoint's record.
    pub fn endpoint(&self, node: &NodeName, ip: IpAddr) -> Key {
        self.key(format_args!("endpoints/{node}/{ip}"))
    }

    /// All endpoints of a node.
    pub fn endpoints(&self, node: &NodeName) -> Prefix {
        self.prefix(format_args!("endpoints/{node}/"))
    }

    /// A service's record.
    pub fn service(&self, name: &ServiceName) -> Key {
        self.key(format_args!("services/{name}"))
    }

    /// The claim of a service on an address or port.
    pub fn service_claim(&self, claim: &ServiceClaim) -> Key {
        match claim {
            ServiceClaim::VirtualIp(address) => self.key(format_args!("vips/{address}")),
            ServiceClaim::Frontend { address, protocol, port } => {
                self.key(format_args!("frontends/{address}/{protocol}/{port}"))
            }
        }
    }

    /// All claims on single ports of an address.
    pub fn frontends_of(&self, address: IpAddr) -> Prefix {
        self.prefix(format_args!("frontends/{address}/"))
    }

    /// Takes a key apart.
    ///
    /// # Errors
    /// When this type would not have made the key; the caller counts and skips the record.
    pub fn parse(&self, key: &Key) -> Result<ParsedKey, KeyError> {
        let fail = |reason: &str| KeyError { key: key.to_string(), reason: reason.to_owned() };
        let rest = key.as_str().strip_prefix(&self.root).ok_or_else(|| fail("another fleet's prefix"))?;
        let node = |text: &str| NodeName::new(text).map_err(|error| fail(&error.to_string()));
        let id = |text: &str| {
            let number = text.parse::<u32>().map_err(|error| fail(&error.to_string()))?;
            if number.to_string() != text {
                return Err(fail("the number is not in its canonical form"));
            }
            Identity::new(number).map_err(|error| fail(&error.to_string()))
        };
        let address = |text: &str| {
            let address: IpAddr = text.parse().map_err(|_| fail("not an address"))?;
            if address.to_string() != *text {
                return Err(fail("the address is not in its canonical form"));
            }
            Ok(address)
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let parsed = match parts.as_slice() {
            ["fleet"] => ParsedKey::Fleet,
            ["keyring"] => ParsedKey::Keyring,
            ["mark"] => ParsedKey::Mark,
            ["nodes", name] => ParsedKey::Node(node(name)?),
            ["alive", name] => ParsedKey::Alive(node(name)?),
            ["cidrs", text] => {
                let cidr: IpNetwork = text
                    .rsplit_once('-')
                    .and_then(|(net, len)| format!("{net}/{len}").parse().ok())
                    .ok_or_else(|| fail("not a CIDR"))?;
                if self.cidr(cidr) != *key {
                    return Err(fail("the CIDR is not in its canonical form"));
                }
                ParsedKey::Cidr(cidr)
            }
            ["identities", "labels", digest] => {
                let digest = digest.parse::<LabelDigest>();
                ParsedKey::IdentityLabels(digest.map_err(|error| fail(&error.to_string()))?)
            }
            ["identities", "id", number] => ParsedKey::IdentityId(id(number)?),
            ["identities", "refs", number, name] => ParsedKey::IdentityRef(id(number)?, node(name)?),
            ["endpoints", name, ip] => ParsedKey::Endpoint(node(name)?, address(ip)?),
            ["services", name] => {
                ParsedKey::Service(ServiceName::new(name).map_err(|error| fail(&error.to_string()))?)
            }
            ["vips", ip] => ParsedKey::ServiceClaim(ServiceClaim::VirtualIp(address(ip)?)),
            ["frontends", ip, word, number] => {
                let known = ServiceProtocol::ALL.into_iter().find(|protocol| protocol.word() == *word);
                let protocol = known.ok_or_else(|| fail("not a protocol"))?;
                let port = number.parse().map_err(|_| fail("not a port"))?;
                let claim = ServiceClaim::Frontend { address: address(ip)?, protocol, port };
                if self.service_claim(&claim) != *key {
                    return Err(fail("the port is not in its canonical form"));
                }
                ParsedKey::ServiceClaim(claim)
            }
            ["policies", name] => ParsedKey::Policy((*name).to_owned()),
            _ => return Err(fail("no record has this form")),
        };
        Ok(parsed)
    }
}
