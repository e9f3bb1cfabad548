//! The expectations of a scenario, checked in the kernels, in etcd and in the agents' reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use identity::Identity;
use ipnetwork::IpNetwork;
use node_api::DiffQuery;

use super::{
    run::{Run, pass},
    step::Expect,
};
use crate::{ask, kernel_ipcache, machines, probe, process, wait};

/// The time after which a probe knows that a packet is lost, and a little more.
const LOSS_IS_KNOWN: Duration = Duration::from_millis(3_200);

impl Run<'_> {
    /// Whether the expectation holds, and what was observed.
    pub(super) fn expect(&self, expect: &Expect) -> Result<String> {
        match expect {
            Expect::Clean { probe, since, until, steady } => {
                self.clean(probe, since.as_deref(), until.as_deref(), *steady)
            }
            Expect::Losses { probe, since } => self.losses(probe, since.as_deref()),
            Expect::Reaches { from, to, within } => self.reaches(from, to, *within),
            Expect::Converged { within, since } => self.converged(*within, since.as_deref()),
            Expect::Recorded { within } => self.recorded(*within),
            Expect::Kept { since } => self.kept(since.as_deref()),
            Expect::Ready { nodes, within } => self.ready(nodes, *within),
            Expect::Status { nodes, text, not, within } => self.status(nodes, text, *not, *within),
        }
    }

    fn clean(&self, probe: &str, since: Option<&str>, until: Option<&str>, steady: bool) -> Result<String> {
        let now = Instant::now();
        let begin = self.clock.since(since);
        let end = until.map_or(now, |until| self.clock.since(Some(until)));
        // A packet under way is lost only when its time is over.
        pass((end + LOSS_IS_KNOWN).saturating_duration_since(now))?;
        let (mut words, mut arrived) = (Vec::new(), Vec::new());
        for name in self.probe_names(probe) {
            let mut report = self.probes[&name].report();
            report.troubles.retain(|trouble| {
                let counts =
                    if steady { trouble.cause != probe::Cause::Late } else { trouble.cause.is_loss() };
                counts && trouble.end >= begin && trouble.begin <= end
            });
            words.extend(report.describe(self.clock.origin).into_iter().map(|it| format!("{name}: {it}")));
            arrived.push(format!("{name}: {} {}", report.arrived, report.unit));
            ensure!(report.arrived > 0, "{name}: nothing has arrived at all");
        }
        ensure!(words.is_empty(), "{}", words.join("; "));
        Ok(format!("nothing lost ({} so far)", arrived.join(", ")))
    }

    fn losses(&self, probe: &str, since: Option<&str>) -> Result<String> {
        pass(LOSS_IS_KNOWN)?;
        let begin = self.clock.since(since);
        let mut count = 0;
        for name in self.probe_names(probe) {
            let report = self.probes[&name].report();
            count += report.losses().filter(|it| it.end >= begin).map(|it| it.count).sum::<u64>();
        }
        ensure!(count > 0, "nothing was lost");
        Ok(format!("{count} lost"))
    }

    fn reaches(&self, from: &str, to: &str, within: Duration) -> Result<String> {
        let start = Instant::now();
        let (from, to) = (self.endpoint(from)?, self.endpoint(to)?);
        wait::until("an answer", within, || probe::ping(&from.namespace, to.address, 1))?;
        Ok(format!("{} answered after {:.2} s", to.address, start.elapsed().as_secs_f64()))
    }

    fn converged(&self, within: Duration, since: Option<&str>) -> Result<String> {
        let start = since.map_or_else(Instant::now, |since| self.clock.since(Some(since)));
        let left = (start + within).saturating_duration_since(Instant::now());
        wait::until("the fleet to converge", left, || {
            for node in self.lab.spec().node_names() {
                self.kernel_is_right(&node)?;
            }
            for node in self.lab.spec().node_names() {
                let query = DiffQuery::default();
                let differences = ask(self.lab.api(&node).state_diff(&query))?.differences;
                ensure!(differences.is_empty(), "{node}: the kernel differs: {}", differences.join("; "));
            }
            Ok(())
        })?;
        let took = start.elapsed();
        self.owned_once()?;
        Ok(format!(
            "{:.2} s {}",
            took.as_secs_f64(),
            since.map_or("after now".into(), |it| format!("after {it}"))
        ))
    }

    /// Whether a node's kernel has exactly the endpoints of the scenario, with their identities.
    fn kernel_is_right(&self, node: &str) -> Result<()> {
        let wanted: BTreeMap<IpAddr, u32> =
            self.endpoints.values().map(|endpoint| (endpoint.address, endpoint.identity)).collect();
        let mut known: BTreeMap<IpAddr, u32> = kernel_ipcache(&self.lab.api(node))?.into_iter().collect();
        // Gateways and underlay addresses have reserved identities.
        known.retain(|_, identity| Identity::new(*identity).is_ok_and(|identity| identity.is_fleet()));
        let text = |these: &BTreeMap<IpAddr, u32>, others: &BTreeMap<IpAddr, u32>| {
            let only = these.iter().filter(|(address, identity)| others.get(address) != Some(identity));
            only.map(|(address, identity)| format!("{address} as {identity}")).collect::<Vec<_>>().join(", ")
        };
        ensure!(
            known == wanted,
            "{node}: missing: [{}]; stale: [{}]",
            text(&wanted, &known),
            text(&known, &wanted)
        );
        Ok(())
    }

    /// No block has two owners, and no block contains another.
    fn owned_once(&self) -> Result<()> {
        let mut blocks = Vec::new();
        for node in self.lab.spec().node_names() {
            for cidr in ask(self.lab.api(&node).status())?.cidrs {
                blocks.push((cidr.cidr, node.clone()));
            }
        }
        for (index, (cidr, node)) in blocks.iter().enumerate() {
            for (other, owner) in &blocks[index + 1..] {
                let apart = !cidr.contains(other.network()) && !other.contains(cidr.network());
                ensure!(apart, "{node} has {cidr}, and {owner} has {other}");
            }
        }
        let addresses: BTreeSet<IpAddr> = self.endpoints.values().map(|it| it.address).collect();
        ensure!(addresses.len() == self.endpoints.len(), "two endpoints have one address");
        let mut identities = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            let first = *identities.entry(&endpoint.labels).or_insert(endpoint.identity);
            ensure!(first == endpoint.identity, "{} has two identities", endpoint.labels);
        }
        let numbers: BTreeSet<&u32> = identities.values().collect();
        ensure!(numbers.len() == identities.len(), "two label sets have one identity");
        Ok(())
    }

    fn recorded(&self, within: Duration) -> Result<String> {
        let start = Instant::now();
        let prefix = format!("/warren/v1/{}/endpoints/", self.lab.name().as_str());
        let wanted: BTreeSet<String> =
            self.endpoints.values().map(|it| format!("{prefix}{}/{}", it.node, it.address)).collect();
        wait::until("etcd to have the endpoints", within, || {
            let found: BTreeSet<String> = self
                .etcd_get(&prefix, &["--keys-only"])?
                .lines()
                .filter(|it| !it.is_empty())
                .map(str::to_owned)
                .collect();
            let missing: Vec<&String> = wanted.difference(&found).collect();
            let stale: Vec<&String> = found.difference(&wanted).collect();
            ensure!(missing.is_empty() && stale.is_empty(), "missing: {missing:?}; stale: {stale:?}");
            for node in self.lab.spec().node_names() {
                for endpoint in ask(self.lab.api(&node).endpoints())?.items {
                    ensure!(endpoint.recorded, "{node} does not take {} for recorded", endpoint.name);
                }
            }
            self.claims_are_recorded()
        })?;
        Ok(format!("{} endpoints after {:.2} s", wanted.len(), start.elapsed().as_secs_f64()))
    }

    /// Each block of a node is claimed in etcd by that node, and no two claims overlap.
    fn claims_are_recorded(&self) -> Result<()> {
        let prefix = format!("/warren/v1/{}/cidrs/", self.lab.name().as_str());
        let text = self.etcd_get(&prefix, &[])?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let mut claims = BTreeMap::new();
        for pair in lines.chunks(2) {
            let [key, value] = pair else { bail!("etcd's answer is no list of keys and values: {text}") };
            let cidr: IpNetwork = key[prefix.len()..].replace('-', "/").parse()?;
            let record: serde_json::Value = serde_json::from_str(value)?;
            let node = record["node"].as_str().context("a claim names its node")?;
            claims.insert(cidr, node.to_owned());
        }
        for (cidr, node) in &claims {
            let other = claims.keys().find(|other| *other != cidr && other.contains(cidr.network()));
            ensure!(other.is_none(), "{node} claims {cidr}, which lies in {other:?}");
        }
        for node in self.lab.spec().node_names() {
            for held in ask(self.lab.api(&node).status())?.cidrs {
                let owner = claims.get(&held.cidr);
                ensure!(owner == Some(&node), "{node} holds {}, which etcd gives to {owner:?}", held.cidr);
            }
        }
        Ok(())
    }

    /// The records of etcd below a prefix, as `etcdctl get` prints them, from a member that answers.
    fn etcd_get(&self, prefix: &str, flags: &[&str]) -> Result<String> {
        let arguments = [&["--command-timeout=2s", "get", "--prefix", prefix], flags].concat();
        let mut last = None;
        for member in self.lab.spec().etcd_names() {
            match process::run(&self.lab.name().machine_namespace(&member), "etcdctl", &arguments) {
                Ok(text) => return Ok(text),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("this fleet has no etcd")?).context("no member of etcd answers")
    }

    fn kept(&self, since: Option<&str>) -> Result<String> {
        let left = self.watch.left_since(self.clock.since(since))?;
        let words: Vec<String> =
            left.iter().map(|it| format!("{} at {} ms", it.entry, self.clock.ms(it.at))).collect();
        ensure!(left.is_empty(), "{}", words.join("; "));
        Ok("no entry has left a kernel map".to_owned())
    }

    fn ready(&self, nodes: &str, within: Duration) -> Result<String> {
        let start = Instant::now();
        for node in machines::parse(self.lab.spec(), nodes)? {
            wait::until(&format!("the agent of {node}"), within, || {
                ensure!(ask(self.lab.api(&node).status())?.ready, "it is not ready");
                Ok(())
            })?;
        }
        Ok(format!("after {:.2} s", start.elapsed().as_secs_f64()))
    }

    fn status(&self, nodes: &str, text: &str, not: bool, within: Duration) -> Result<String> {
        let start = Instant::now();
        for node in machines::parse(self.lab.spec(), nodes)? {
            wait::until(&format!("the status of {node}"), within, || {
                let output = self.lab.command(&node, "warren")?.arg("status").output()?;
                let said = String::from_utf8_lossy(&output.stdout);
                if said.contains(text) == not {
                    bail!("it {} {text:?}:\n{said}", if not { "says" } else { "does not say" });
                }
                Ok(())
            })?;
        }
        Ok(format!("after {:.2} s", start.elapsed().as_secs_f64()))
    }
}
