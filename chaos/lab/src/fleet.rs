//! Labs: creating them, finding them again, and where their files are.
//!
//! A lab's directory holds its specification; everything else is found by name (namespaces, cgroups, pins,
//! directories), so that a lab whose `up` was killed half-way is taken down like any other one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use node_api::Client;

use crate::{
    agent::AGENT,
    cgroup, config, interrupt,
    name::{LabName, labs_folder},
    namespace, process, require_root,
    spec::{Spec, UNDERLAY_PREFIX, underlay_address, underlay_mac},
    teardown,
};

/// The bridge in the underlay's namespace.
const BRIDGE: &str = "underlay";

/// A lab that is, or was, up.
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    spec: Spec,
    /// Receives progress messages, one line each.
    report: fn(&str),
}

impl Lab {
    /// Creates a lab, and waits until every agent is ready and knows every other one. If anything fails, what was
    /// created is removed again.
    ///
    /// # Errors
    /// When the lab exists already, a program is missing, or a process does not come up in time; the text holds the
    /// end of its log.
    pub fn up(name: LabName, spec: Spec, report: fn(&str)) -> Result<Self> {
        let lab = Self::make(name, spec, report)?;
        lab.bring_up(Self::start)?;
        Ok(lab)
    }

    /// Creates a lab in which nothing runs yet: machines on the underlay, configurations, the gossip key. If anything
    /// fails, what was created is removed again.
    ///
    /// # Errors
    /// When the lab exists already, or a program is missing.
    pub fn make(name: LabName, spec: Spec, report: fn(&str)) -> Result<Self> {
        spec.check()?;
        require_root()?;
        fs::create_dir_all(labs_folder()).with_context(|| format!("create {}", labs_folder().display()))?;
        let folder = name.folder();
        if let Err(error) = fs::create_dir(&folder) {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                bail!(
                    "lab {0} is there already: `warren-lab --name {0} status` shows it, `warren-lab --name {0} down` takes it down, another --name makes a second one",
                    name.as_str()
                );
            }
            return Err(error).with_context(|| format!("create {}", folder.display()));
        }
        let lab = Self { name, spec, report };
        lab.bring_up(Self::lay_out)?;
        Ok(lab)
    }

    /// Runs a step of bringing the lab up: no other program can take the lab down meanwhile, and if the step fails,
    /// the lab is taken down.
    ///
    /// # Errors
    /// The error of the step, with what could not be removed.
    pub fn bring_up(&self, step: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let lock = teardown::lock(&self.name)?;
        let result = step(self);
        drop(lock);
        result.map_err(|error| {
            self.report("taking down what was made");
            match teardown::take_down(&self.name) {
                Ok(_) => error,
                Err(second) => error.context(format!("and taking it down failed too: {second:#}")),
            }
        })
    }

    /// Opens an existing lab.
    ///
    /// # Errors
    /// When there is no lab with this name.
    pub fn open(name: LabName, report: fn(&str)) -> Result<Self> {
        let path = spec_path(&name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name.folder().exists() => {
                bail!("lab {0} is only half there: `warren-lab --name {0} down` removes it", name.as_str())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("no lab {0} is up: `warren-lab --name {0} up` makes one", name.as_str())
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let spec = serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
        Ok(Self { name, spec, report })
    }

    /// The names of all labs of which anything exists.
    ///
    /// # Errors
    /// When the folder of labs cannot be read.
    pub fn list() -> Result<Vec<LabName>> {
        match fs::read_dir(labs_folder()) {
            Ok(entries) => {
                let mut names: Vec<LabName> = entries
                    .filter_map(|entry| LabName::new(entry.ok()?.file_name().to_str()?).ok())
                    .collect();
                names.sort();
                Ok(names)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context("read the folder of labs"),
        }
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// Its specification.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Reports progress to the creator of the lab.
    pub(crate) fn report(&self, line: &str) {
        (self.report)(line);
    }

    fn lay_out(&self) -> Result<()> {
        self.report(&format!(
            "lab {}: nodes {}, etcd members {}, in network namespaces {}*",
            self.name.as_str(),
            self.spec.nodes,
            self.spec.etcd,
            self.name.namespace_prefix()
        ));
        let path = spec_path(&self.name);
        fs::write(&path, serde_json::to_vec_pretty(&self.spec)?)
            .with_context(|| format!("write {}", path.display()))?;
        let underlay = self.name.underlay_namespace();
        namespace::create(&underlay)?;
        namespace::create_bridge(&underlay, BRIDGE)?;
        for machine in self.spec.etcd_names().chain(self.spec.node_names()) {
            self.add_machine(&machine)?;
        }
        self.write_key()?;
        for node in self.spec.node_names() {
            let path = self.config_path(&node);
            fs::write(&path, config::render(self, &node)?)
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// Adds a machine to the underlay: its namespace, cgroup and veth pair. Also for machines outside the fleet
    /// (`x1`, …).
    ///
    /// # Errors
    /// When a part of the machine exists already.
    pub fn add_machine(&self, machine: &str) -> Result<()> {
        interrupt::check()?;
        let inside = self.name.machine_namespace(machine);
        namespace::create(&inside)?;
        cgroup::create(&self.name, machine)?;
        let address = underlay_address(machine);
        let mac = underlay_mac(address);
        let address = format!("{address}/{UNDERLAY_PREFIX}");
        namespace::plug(&self.name.underlay_namespace(), BRIDGE, machine, &inside, mac, &address)
    }

    /// Creates the lab's gossip key with the agent's own command.
    fn write_key(&self) -> Result<()> {
        let output = self.agent_command(AGENT).arg("keygen").arg(self.key_path()).output();
        let output = output.context("run warrend keygen")?;
        if !output.status.success() {
            bail!("warrend keygen: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// A program of the agent, without this program's own variables: `WARREN_*` are settings of the agent.
    pub(crate) fn agent_command(&self, program: &str) -> Command {
        let mut command = Command::new(self.spec.programs.join(program));
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"WARREN_") {
                command.env_remove(name);
            }
        }
        command
    }

    pub(crate) fn key_path(&self) -> PathBuf {
        self.name.folder().join("gossip.key")
    }

    /// The configuration of a node's agent.
    pub fn config_path(&self, node: &str) -> PathBuf {
        self.name.folder().join(format!("{node}.toml"))
    }

    /// The log of a machine's programs.
    pub fn log_path(&self, machine: &str) -> PathBuf {
        self.name.folder().join(format!("{machine}.log"))
    }

    /// The last lines of a machine's log.
    pub fn log_end(&self, machine: &str) -> String {
        let text = fs::read_to_string(self.log_path(machine)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A node's socket.
    pub fn socket_path(&self, node: &str) -> PathBuf {
        self.name.folder().join(node).join("warren.sock")
    }

    /// The directory of a node's pinned maps, programs and links.
    pub fn pin_path(&self, node: &str) -> PathBuf {
        self.name.pin_folder().join(node)
    }

    /// A client of a node's agent.
    pub fn api(&self, node: &str) -> Client {
        Client::new(self.socket_path(node))
    }

    /// Whether this lab has such a node.
    ///
    /// # Errors
    /// Names those that it has.
    pub fn check_node(&self, node: &str) -> Result<()> {
        if self.spec.node_names().any(|name| name == node) {
            return Ok(());
        }
        let names: Vec<String> = self.spec.node_names().collect();
        bail!("lab {} has no node {node}; it has {}", self.name.as_str(), names.join(", "))
    }

    /// A command that runs in a machine's or endpoint's namespace; on a node `warren` finds its agent. Taking the lab
    /// down kills it.
    ///
    /// # Errors
    /// When there is no such machine or endpoint.
    pub fn command(&self, target: &str, program: impl AsRef<Path>) -> Result<Command> {
        let (inside, node) = self.find_namespace(target)?;
        let mut command = Command::new(program.as_ref());
        // A child of the node's cgroup: the node's socket programs apply to its processes, and to no others.
        let group = node.as_ref().map_or_else(|| "exec".to_owned(), |node| format!("{node}/exec"));
        process::enter(&mut command, &inside, Some(&cgroup::create(&self.name, &group)?))?;
        if let Some(node) = node {
            command.env("WARREN_SOCKET", self.socket_path(&node));
        }
        let mut path = self.spec.programs.clone().into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command.env("PATH", path);
        Ok(command)
    }
}

fn spec_path(name: &LabName) -> PathBuf {
    name.folder().join("spec.json")
}
