//! Store over etcd: the only crate that names `etcd-client`.
//!
//! `etcd-client` is a thin stub without retries and failover. Both are here, each in one place: the choice of the member
//! ([`EtcdStore`]), the meaning of an error (`classify`), the end of a watch (`watch`). Watches and leases are not resumed
//! here: the caller knows what depends on them, so their loss is reported.

mod classify;
mod config;
mod convert;
mod endpoint;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod watch;

pub use config::{ConfigErrors, DEFAULT_CALL_TIMEOUT, EtcdConfig, TlsConfig};
pub use store::EtcdStore;
