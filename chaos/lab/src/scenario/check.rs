//! Checks before a run that every step names machines, endpoints, probes and marks that exist by then.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::step::{Expect, Step};
use crate::{Spec, fault::FaultCommand, machines};

/// What the steps so far have created.
pub(super) struct Known {
    spec: Spec,
    marks: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    probes: BTreeSet<String>,
}

impl Known {
    pub fn new(spec: Spec) -> Self {
        Self { spec, marks: BTreeSet::new(), endpoints: BTreeSet::new(), probes: BTreeSet::new() }
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Checks the next step, and records what it creates.
    pub fn check(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Endpoint { endpoint, labels } => {
                labels.parse::<identity::Labels>()?;
                let (node, name) = endpoint.split_once('/').context("an endpoint is NODE/NAME")?;
                self.node(node)?;
                identity::EndpointName::new(name)?;
                ensure!(self.endpoints.insert(endpoint.clone()), "endpoint {endpoint} is there already");
            }
            Step::Delete { endpoint } => {
                ensure!(self.endpoints.remove(endpoint), "no endpoint {endpoint} is there");
            }
            Step::Probe(probe) => {
                let (name, from, to) = probe.parties();
                [from, to].into_iter().try_for_each(|endpoint| self.endpoint(endpoint))?;
                ensure!(
                    name != "all" && !name.contains(','),
                    "`all` names all probes, and commas part several"
                );
                ensure!(self.probes.insert(name.to_owned()), "there was a probe {name} before");
            }
            Step::Finish { probe } => self.probe(probe)?,
            Step::Mark { name } => drop(self.marks.insert(name.clone())),
            Step::Wait { .. } => {}
            Step::Fault(FaultCommand::Reboot { node }) => {
                self.node(node)?;
                self.endpoints.retain(|endpoint| !endpoint.starts_with(&format!("{node}/")));
            }
            Step::Fault(FaultCommand::Etcd(_)) => {
                ensure!(self.spec.etcd > 0, "this fleet has no etcd");
            }
            Step::Fault(command) => {
                for text in command.machine_sets() {
                    machines::parse(&self.spec, text)?;
                }
            }
            Step::Expect(expect) => match expect {
                Expect::Clean { probe, since, until, .. } => {
                    self.probe(probe)?;
                    self.mark(since)?;
                    self.mark(until)?;
                }
                Expect::Losses { probe, since } => {
                    self.probe(probe)?;
                    self.mark(since)?;
                }
                Expect::Reaches { from, to, .. } => {
                    [from, to].into_iter().try_for_each(|endpoint| self.endpoint(endpoint))?;
                }
                Expect::Converged { since, .. } | Expect::Kept { since } => self.mark(since)?,
                Expect::Recorded { .. } => {}
                Expect::Ready { nodes, .. } | Expect::Status { nodes, .. } => {
                    for machine in machines::parse(&self.spec, nodes)? {
                        self.node(&machine)?;
                    }
                }
            },
        }
        Ok(())
    }

    fn node(&self, node: &str) -> Result<()> {
        ensure!(self.spec.node_names().any(|name| name == node), "this fleet has no node {node}");
        Ok(())
    }

    fn endpoint(&self, endpoint: &str) -> Result<()> {
        ensure!(self.endpoints.contains(endpoint), "no endpoint {endpoint} is there at this point");
        Ok(())
    }

    fn probe(&self, probe: &str) -> Result<()> {
        if probe != "all" {
            for name in probe.split(',') {
                ensure!(self.probes.contains(name), "no probe {name} was begun");
            }
        }
        Ok(())
    }

    fn mark(&self, mark: &Option<String>) -> Result<()> {
        let known = mark.as_ref().is_none_or(|mark| self.marks.contains(mark));
        ensure!(known, "no mark {} was set", mark.as_deref().unwrap_or_default());
        Ok(())
    }
}
