//! Store over etcd: the only crate that names `etcd-client`.
//!
//! `etcd-client` is a thin stub: no retries, no failover, no resumption. All of that is here, and in one
//! place each: which member is asked next ([`EtcdStore`]), what an error means (`classify`), when a
//! watch is over (`watch`). What is not here: resuming a watch or a lease. Whoever holds one knows what
//! hangs on it, so the loss is reported and never papered over.

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
