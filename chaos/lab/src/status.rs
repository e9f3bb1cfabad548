//! The state of a lab's machines.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{Endpoint, Lab, ask, spec::underlay_address};

/// What `warren-lab status` shows of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// `n1`, `e1`, ….
    pub name: String,
    /// Its address on the underlay.
    pub underlay: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its processes.
    pub processes: Vec<i32>,
    /// The agent's socket (nodes).
    pub socket: Option<PathBuf>,
    /// What is wrong with the machine, if anything.
    pub problem: Option<String>,
}

/// What `warren-lab status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabStatus {
    /// The lab's name.
    pub name: String,
    /// Nodes and etcd members.
    pub machines: Vec<MachineStatus>,
    /// Endpoints that the agents know.
    pub endpoints: Vec<Endpoint>,
}

impl Lab {
    /// The state of each machine, and all endpoints.
    ///
    /// # Errors
    /// When cgroups cannot be read; an agent that does not answer is a problem of its machine.
    pub fn status(&self) -> Result<LabStatus> {
        let mut machines = Vec::new();
        let mut endpoints = Vec::new();
        for name in self.spec().node_names().chain(self.spec().etcd_names()) {
            let is_node = name.starts_with('n');
            let processes = self.processes(&name)?;
            let found = if processes.is_empty() {
                Err("no process".to_owned())
            } else if is_node {
                self.node_endpoints(&name)
            } else {
                Ok(Vec::new())
            };
            let problem = match found {
                Ok(found) => {
                    endpoints.extend(found);
                    None
                }
                Err(problem) => Some(problem),
            };
            machines.push(MachineStatus {
                underlay: underlay_address(&name).to_string(),
                namespace: self.name().machine_namespace(&name),
                processes,
                socket: is_node.then(|| self.socket_path(&name)),
                problem,
                name,
            });
        }
        Ok(LabStatus { name: self.name().as_str().to_owned(), machines, endpoints })
    }

    /// The endpoints of a node, or what is wrong with it.
    fn node_endpoints(&self, node: &str) -> Result<Vec<Endpoint>, String> {
        let status = ask(self.api(node).status()).map_err(|error| format!("{error:#}"))?;
        match status.halted {
            Some(halted) => Err(format!("halted: {}", halted.reason)),
            None if !status.ready => Err("not ready".to_owned()),
            None => self.endpoints_of(node).map_err(|error| format!("{error:#}")),
        }
    }
}
