//! Faults of machines: their processes are paused, or end.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::Fault;
use crate::{
    Lab, namespace, process,
    spec::{UNDERLAY_PREFIX, underlay_address},
};

impl Lab {
    pub(super) fn pause(&self, machine: &str) -> Result<()> {
        let inside = self.processes(machine)?;
        if inside.is_empty() {
            bail!("nothing runs on {machine}");
        }
        inside.into_iter().try_for_each(|pid| process::signal(pid, Signal::SIGSTOP))
    }

    /// A process that has ended meanwhile needs no SIGCONT.
    pub(super) fn resume(&self, machine: &str) -> Result<()> {
        self.processes(machine)?.into_iter().try_for_each(|pid| process::signal(pid, Signal::SIGCONT))
    }

    pub(super) fn kill(&self, machine: &str) -> Result<()> {
        if self.processes(machine)?.is_empty() { Ok(()) } else { self.end(machine, Signal::SIGKILL) }
    }

    pub(super) fn terminate(&self, machine: &str) -> Result<()> {
        if self.processes(machine)?.is_empty() { Ok(()) } else { self.end(machine, Signal::SIGTERM) }
    }

    /// Starts a machine's agent or etcd member, unless it runs. Does not wait.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start_machine(&self, machine: &str) -> Result<()> {
        if !self.processes(machine)?.is_empty() {
            return Ok(());
        }
        if machine.starts_with('e') { self.start_etcd(machine) } else { self.start_agent(machine) }
    }

    /// Starts or resumes machines: the faults of these machines alone are healed.
    ///
    /// # Errors
    /// When a machine cannot be started.
    pub fn start_machines(&self, machines: &[String]) -> Result<()> {
        self.heal_where(|active| match &active.fault {
            Fault::Paused { machine } | Fault::Down { machine } => machines.contains(machine),
            _ => false,
        })?;
        machines.iter().try_for_each(|machine| self.start_machine(machine))
    }

    pub(super) fn change_address(&self, node: &str, address: Ipv4Addr) -> Result<()> {
        self.check_node(node)?;
        let inside = self.name().machine_namespace(node);
        let text = format!("{address}/{UNDERLAY_PREFIX}");
        // The old address goes first: the kernel would make a second one of the same network a secondary address.
        namespace::ip(["-n", &inside, "-4", "address", "flush", "dev", "eth0"])?;
        namespace::ip(["-n", &inside, "address", "add", &text, "dev", "eth0"])
            .with_context(|| format!("give {node} the address {address}"))
    }

    pub(super) fn restore_address(&self, node: &str) -> Result<()> {
        self.change_address(node, underlay_address(node))
    }
}
