//! Who is who in a fleet: labels, selectors, identity numbers and names.
//!
//! Invariant: pure. No clock, socket, file, thread or randomness; everything arrives as arguments.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod filter;
mod labels;
mod name;
mod number;
mod selector;

pub use filter::{LabelFilter, LabelPattern, PatternError};
pub use labels::{DigestError, LabelDigest, LabelError, Labels, MAX_KEY_BYTES, MAX_LABELS, MAX_VALUE_BYTES};
pub use name::{
    EndpointName, FleetName, MAX_NAME_BYTES, NameError, NodeName, ObjectName, ServiceName, check_name,
};
pub use number::{Identity, IdentityError};
pub use selector::{MAX_SELECTOR_PARTS, Operator, Requirement, Selector, SelectorError};
