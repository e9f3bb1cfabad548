//! A fleet on one machine: real agents in network namespaces, with a real etcd, on their own underlay.
//!
//! The machine's own namespace has nothing but the names of namespaces, and every name contains the lab's: labs are
//! isolated from each other.

mod agent;
pub mod cgroup;
mod config;
pub mod duration;
mod endpoint;
pub mod fault;
mod fleet;
pub mod interrupt;
mod ipcache;
pub mod machines;
pub mod name;
pub mod namespace;
pub mod probe;
pub mod process;
pub mod scenario;
pub mod spec;
mod status;
mod teardown;
pub mod wait;

pub use endpoint::Endpoint;
pub use fleet::Lab;
pub use ipcache::kernel_ipcache;
pub use name::LabName;
pub use spec::Spec;
pub use status::{LabStatus, MachineStatus};
pub use teardown::take_down;

use std::{future::Future, sync::LazyLock, time::Duration};

use anyhow::{Context, Result, bail};
use node_api::ClientError;

/// How long an agent may take to answer: its own limits are shorter, so that only a stopped agent takes this long.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime with one thread needs only memory and a few descriptors")
});

/// Runs one call of an agent's API to its end. Not for use inside an async task.
///
/// # Errors
/// The client's error, or that the agent did not answer within [`ANSWER_LIMIT`].
pub fn ask<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
    let answer = RUNTIME.block_on(async { tokio::time::timeout(ANSWER_LIMIT, call).await });
    Ok(answer.with_context(|| format!("the agent did not answer within {} s", ANSWER_LIMIT.as_secs()))??)
}

/// Whether this process may create labs.
///
/// # Errors
/// When it may not.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab is made of network namespaces, cgroups and BPF programs: run warren-lab as root");
    }
    Ok(())
}
