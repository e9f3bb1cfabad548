//! A fleet on one machine: real agents in network namespaces, beside a real etcd, on an underlay of their own.
//!
//! Nothing is left in the machine's own namespace but the names of namespaces, and everything carries the
//! lab's name: two labs at once never meet.

pub mod cgroup;
mod config;
mod endpoint;
mod fleet;
pub mod name;
pub mod namespace;
pub mod probe;
pub mod process;
pub mod spec;
pub mod wait;

pub use endpoint::Endpoint;
pub use fleet::{Lab, LabStatus, MachineStatus, take_down};
pub use name::LabName;
pub use spec::Spec;

use std::{future::Future, sync::LazyLock};

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime with one thread needs only memory and a few descriptors")
});

/// Runs one call of an agent's API to its end. Not for use inside an async task.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}
