//! Who is who in a fleet: labels, selectors, identity numbers and ipcache precedence.
//!
//! Invariant: pure. No clock, socket, file, thread or randomness; everything arrives as arguments.

mod labels;
mod name;
mod number;

pub use labels::{LabelDigest, LabelError, Labels};
pub use name::{EndpointName, FleetName, MAX_NAME_BYTES, NameError, NodeName, check_name};
pub use number::{Identity, IdentityError};
