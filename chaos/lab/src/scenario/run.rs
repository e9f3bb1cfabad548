//! Runs a scenario: creates a lab, carries out the steps, and takes the lab down again.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use identity::Labels;

use super::{
    file::Scenario,
    kernel::Watch,
    reader::Placed,
    report::{Clock, Expectation, ProbeReport, RunReport, TimelineEntry},
    step::{ProbeStep, Step},
};
use crate::{
    Endpoint, Lab, LabName, Spec,
    fault::{EtcdCommand, FaultCommand},
    interrupt,
    probe::{Connections, Datagrams, Ping, Report, Running, Streams},
    spec::underlay_address,
    take_down, wait,
};

/// How long a probe's first packet may take: a connection and its first write.
const FIRST_LIMIT: Duration = Duration::from_secs(30);

/// A probe of the scenario: running, or with its report.
pub(super) enum Probe {
    Running(Running),
    Finished(Report),
}

impl Probe {
    pub(super) fn report(&self) -> Report {
        match self {
            Self::Running(running) => running.report(),
            Self::Finished(report) => report.clone(),
        }
    }
}

/// A scenario under way.
pub(super) struct Run<'a> {
    pub lab: &'a Lab,
    pub clock: Clock,
    pub watch: Watch,
    /// The endpoints that must exist, by NODE/NAME.
    pub endpoints: BTreeMap<String, Endpoint>,
    pub probes: BTreeMap<String, Probe>,
    timeline: Vec<TimelineEntry>,
    expectations: Vec<Expectation>,
    tell: fn(&str),
}

/// Creates a lab of this name, runs the scenario in it, and takes it down again unless it is to be kept.
///
/// # Errors
/// When the lab cannot be created or taken down, or the run was interrupted; a scenario that fails is a report, not
/// an error.
pub fn run(scenario: &Scenario, name: LabName, keep: bool, tell: fn(&str)) -> Result<RunReport> {
    let mut spec = Spec::new(scenario.nodes, scenario.etcd)?;
    spec.agent_flags.clone_from(&scenario.agent_flags);
    run_in(scenario, name, spec, keep, tell)
}

fn run_in(scenario: &Scenario, name: LabName, spec: Spec, keep: bool, tell: fn(&str)) -> Result<RunReport> {
    let _catch = interrupt::Catch::new()?;
    let lab = Lab::make(name, spec, tell)?;
    let guard = Guard { lab: &lab, keep };
    lab.bring_up(Lab::start)?;
    let report = Run::begin(&lab, tell).finish(scenario);
    if !report.passed {
        for node in lab.spec().node_names() {
            tell(&format!("--- the log of {node} ends with\n{}", lab.log_end(&node)));
        }
    }
    drop(guard);
    interrupt::check()?;
    Ok(report)
}

/// Takes the lab down when dropped.
struct Guard<'a> {
    lab: &'a Lab,
    keep: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.keep {
            self.lab.report(&format!("lab {} is kept", self.lab.name().as_str()));
        } else if let Err(error) = take_down(self.lab.name()) {
            self.lab.report(&format!("{error:#}"));
        }
    }
}

impl<'a> Run<'a> {
    fn begin(lab: &'a Lab, tell: fn(&str)) -> Self {
        Self {
            lab,
            clock: Clock { origin: Instant::now(), marks: Vec::new() },
            watch: Watch::start(lab),
            endpoints: BTreeMap::new(),
            probes: BTreeMap::new(),
            timeline: Vec::new(),
            expectations: Vec::new(),
            tell,
        }
    }

    fn note(&mut self, text: String) {
        let at_ms = self.clock.ms(Instant::now());
        (self.tell)(&format!("{:>8}.{:03} s  {text}", at_ms / 1_000, at_ms % 1_000));
        self.timeline.push(TimelineEntry { at_ms, text });
    }

    fn finish(mut self, scenario: &Scenario) -> RunReport {
        let mut broken = None;
        for placed in &scenario.steps {
            if let Err(error) = interrupt::check().and_then(|()| self.step(placed)) {
                broken = Some(format!("line {}: {}: {error:#}", placed.line, placed.text));
                self.note(format!("the story ends here: {error:#}"));
                break;
            }
        }
        let names: Vec<String> = self.probes.keys().cloned().collect();
        for name in names {
            if let Err(error) = self.end_probe(&name) {
                broken.get_or_insert(format!("probe {name}: {error:#}"));
            }
        }
        let mut timeline = std::mem::take(&mut self.timeline);
        match self.watch.left_since(self.clock.origin) {
            Ok(left) => timeline.extend(
                left.into_iter()
                    .map(|it| TimelineEntry { at_ms: self.clock.ms(it.at), text: format!("  {}", it.entry) }),
            ),
            Err(error) => drop(broken.get_or_insert(format!("{error:#}"))),
        }
        timeline.sort_by_key(|moment| moment.at_ms);
        let errors: Vec<String> = self
            .lab
            .spec()
            .node_names()
            .flat_map(|node| errors_in(&node, &self.lab.log_path(&node), &scenario.allow_errors))
            .collect();
        let held = self.expectations.iter().all(|expectation| expectation.held);
        let probes =
            self.probes.iter().map(|(name, probe)| ProbeReport::of(name, &probe.report(), &self.clock));
        RunReport {
            scenario: scenario.name.clone(),
            title: scenario.title.clone(),
            seed: scenario.seed,
            passed: held && broken.is_none() && errors.is_empty(),
            broken,
            errors,
            probes: probes.collect(),
            timeline,
            took_ms: self.clock.ms(Instant::now()),
            expectations: self.expectations,
        }
    }

    fn step(&mut self, placed: &Placed) -> Result<()> {
        self.note(placed.text.clone());
        match &placed.step {
            Step::Endpoint { endpoint, labels } => self.add_endpoint(endpoint, &labels.parse()?),
            Step::Delete { endpoint } => self.delete_endpoint(endpoint),
            Step::Probe(probe) => self.begin_probe(probe),
            Step::Finish { probe } => {
                self.probe_names(probe).iter().try_for_each(|name| self.end_probe(name))
            }
            Step::Wait { time } => pass(*time),
            Step::Mark { name } => {
                self.clock.marks.push((name.clone(), Instant::now()));
                Ok(())
            }
            Step::Expect(expect) => {
                let result = self.expect(expect);
                // The consequences of an interrupt are not the fleet's fault.
                interrupt::check()?;
                let (held, seen) = match result {
                    Ok(seen) => (true, seen),
                    Err(error) => (false, format!("{error:#}")),
                };
                self.note(format!("  {}: {seen}", if held { "held" } else { "FAILED" }));
                let text = placed.text.clone();
                self.expectations.push(Expectation { line: placed.line, text, held, seen });
                Ok(())
            }
            Step::Fault(command) => self.fault(command),
        }
    }

    fn add_endpoint(&mut self, endpoint: &str, labels: &Labels) -> Result<()> {
        let (node, name) = endpoint.split_once('/').context("an endpoint is NODE/NAME")?;
        let added = self.lab.add_endpoint(node, name, labels)?;
        self.watch.deleted(added.address, false);
        self.note(format!("  {endpoint} has address {} and identity {}", added.address, added.identity));
        self.endpoints.insert(endpoint.to_owned(), added);
        Ok(())
    }

    fn delete_endpoint(&mut self, endpoint: &str) -> Result<()> {
        let gone = self.endpoints.remove(endpoint).with_context(|| format!("no endpoint {endpoint}"))?;
        self.watch.deleted(gone.address, true);
        self.lab.delete_endpoint(&gone.node, &gone.name).map(drop)
    }

    pub(super) fn endpoint(&self, endpoint: &str) -> Result<&Endpoint> {
        self.endpoints.get(endpoint).with_context(|| format!("no endpoint {endpoint}"))
    }

    fn begin_probe(&mut self, probe: &ProbeStep) -> Result<()> {
        let (name, from, to) = probe.parties();
        let (from, to) = (self.endpoint(from)?.clone(), self.endpoint(to)?.clone());
        let running = match probe {
            ProbeStep::Ping { every, .. } => {
                Ping { interval: *every, ..Ping::new(&from.namespace, to.address) }.start()
            }
            ProbeStep::Datagrams { every, .. } => Datagrams { from, to, interval: *every }.start(),
            ProbeStep::Streams { count, stall, .. } => {
                Streams { stall: *stall, ..Streams::new(&from, &to, *count) }.start()
            }
            ProbeStep::Connections { every, .. } => Connections { from, to, interval: *every }.start(),
        }?;
        // The next step is to affect a probe under way, not its first packet.
        wait::until(&format!("the first {} of probe {name}", running.report().unit), FIRST_LIMIT, || {
            ensure!(running.report().arrived > 0, "nothing has arrived");
            Ok(())
        })?;
        self.probes.insert(name.to_owned(), Probe::Running(running));
        Ok(())
    }

    pub(super) fn probe_names(&self, probe: &str) -> Vec<String> {
        if probe == "all" {
            self.probes.keys().cloned().collect()
        } else {
            probe.split(',').map(str::to_owned).collect()
        }
    }

    fn end_probe(&mut self, name: &str) -> Result<()> {
        let report = match self.probes.remove(name).with_context(|| format!("no probe {name}"))? {
            Probe::Running(running) => running.stop()?,
            Probe::Finished(report) => report,
        };
        self.probes.insert(name.to_owned(), Probe::Finished(report));
        Ok(())
    }

    fn fault(&mut self, command: &FaultCommand) -> Result<()> {
        let in_folder = |file: &Path| self.lab.name().folder().join(file);
        let command = match command {
            // Files of a scenario belong to its lab.
            FaultCommand::Etcd(EtcdCommand::Backup { file }) => {
                FaultCommand::Etcd(EtcdCommand::Backup { file: in_folder(file) })
            }
            FaultCommand::Etcd(EtcdCommand::Restore { file, new_id }) => {
                FaultCommand::Etcd(EtcdCommand::Restore { file: in_folder(file), new_id: *new_id })
            }
            other => other.clone(),
        };
        let rebooted = match &command {
            FaultCommand::Reboot { node } => Some(node.clone()),
            _ => None,
        };
        if let Some(node) = &rebooted {
            self.watch.rebooting(node, true);
            // The node's workloads are gone, and it may announce that.
            for (_, gone) in self.endpoints.extract_if(.., |_, endpoint| endpoint.node == *node) {
                self.watch.deleted(gone.address, true);
            }
        }
        if let FaultCommand::Address { node, address } = &command {
            // The former address may leave, until the fault is healed.
            self.watch.deleted((*address).into(), true);
            self.watch.deleted(underlay_address(node).into(), true);
        }
        let said = command.carry_out(self.lab);
        if let Some(node) = &rebooted {
            self.watch.rebooting(node, false);
        }
        for line in said?.lines() {
            self.note(format!("  {line}"));
        }
        Ok(())
    }
}

/// Lets time pass, unless the run is interrupted.
pub(super) fn pass(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        interrupt::check()?;
        wait::pause();
    }
    Ok(())
}

/// The errors in an agent's log that the scenario does not allow.
fn errors_in(node: &str, log: &Path, allowed: &[String]) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let panics = |line: &str| line.contains("panicked at");
    text.lines()
        .filter(|line| line.contains("ERROR") || panics(line))
        .filter(|line| !allowed.iter().any(|allowed| line.contains(allowed.as_str())))
        .map(|line| format!("{node}: {line}"))
        .collect()
}
