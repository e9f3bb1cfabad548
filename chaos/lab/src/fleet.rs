//! A lab: making it, finding it again, taking it down.
//!
//! The lab's folder holds its specification; everything else is found by name (namespaces, cgroups, pins,
//! folders), so that a lab whose `up` was killed half-way is taken down like any other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use node_api::Client;
use serde::{Deserialize, Serialize};

use crate::{
    cgroup,
    endpoint::Endpoint,
    name::{LabName, labs_folder},
    namespace, process,
    spec::{Spec, UNDERLAY_PREFIX, underlay_address},
    wait,
};

/// How long a fleet may take from the last start of an agent until every agent knows every other. Ten agents
/// with debug builds on two cores take about 10 s.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long an agent may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// The bridge in the underlay's namespace.
const BRIDGE: &str = "underlay";

/// A lab that is, or was, up.
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    spec: Spec,
    /// Told about progress, a line at a time.
    report: fn(&str),
}

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
    /// What is wrong with it; nothing for a machine in order.
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
    /// Makes a lab and waits until every agent is ready and knows every other. When anything fails, what was
    /// made is taken down again.
    ///
    /// # Errors
    /// When the lab is up already, a program is missing, or something does not come up in time; the text
    /// holds the end of the log concerned.
    pub fn up(name: LabName, spec: Spec, report: fn(&str)) -> Result<Self> {
        spec.check()?;
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes network namespaces and loads BPF programs: run warren-lab as root");
        }
        let lab = Self::prepare(name, spec, report)?;
        if let Err(error) = lab.start_everything() {
            let remains = lab.down();
            return Err(match remains {
                Ok(_) => error,
                Err(second) => error.context(format!("and taking it down failed too: {second:#}")),
            });
        }
        Ok(lab)
    }

    /// The folder, the specification in it, and nothing running yet.
    fn prepare(name: LabName, spec: Spec, report: fn(&str)) -> Result<Self> {
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
        fs::write(folder.join("spec.json"), serde_json::to_vec_pretty(&spec)?)?;
        Ok(Self { name, spec, report })
    }

    /// Finds a lab that is up.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn open(name: LabName, report: fn(&str)) -> Result<Self> {
        let path = name.folder().join("spec.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("no lab {0} is up: `warren-lab --name {0} up` makes one", name.as_str())
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let spec = serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
        Ok(Self { name, spec, report })
    }

    /// The names of all labs that left anything.
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

    /// What it is made of.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    fn start_everything(&self) -> Result<()> {
        (self.report)(&format!(
            "lab {}: {} nodes, {} etcd members, in network namespaces {}*",
            self.name.as_str(),
            self.spec.nodes,
            self.spec.etcd,
            self.name.namespace_prefix()
        ));
        let underlay = self.name.underlay_namespace();
        namespace::create(&underlay)?;
        namespace::create_bridge(&underlay, BRIDGE)?;
        for member in self.spec.etcd_names() {
            self.add_machine(&member)?;
            self.start_etcd(&member)?;
        }
        self.write_key()?;
        for node in self.spec.node_names() {
            self.add_machine(&node)?;
            self.write_config(&node)?;
        }
        for node in self.spec.node_names() {
            self.start_agent(&node)?;
        }
        (self.report)("waiting until every agent is ready and knows every other");
        self.wait_ready()
    }

    /// Adds a machine to the underlay: its namespace, its cgroup, its cable. Also for outsiders (`x1`, …).
    ///
    /// # Errors
    /// When a part of it is there already.
    pub fn add_machine(&self, machine: &str) -> Result<()> {
        let inside = self.name.machine_namespace(machine);
        namespace::create(&inside)?;
        cgroup::create(&self.name, machine)?;
        let address = format!("{}/{UNDERLAY_PREFIX}", underlay_address(machine));
        namespace::plug(&self.name.underlay_namespace(), BRIDGE, machine, &inside, &address)
    }

    /// Starts an etcd member with the data that it has.
    ///
    /// # Errors
    /// When etcd is not installed.
    pub fn start_etcd(&self, member: &str) -> Result<()> {
        let address = underlay_address(member);
        let data = self.name.etcd_data_folder();
        fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let cluster: Vec<String> = self
            .spec
            .etcd_names()
            .map(|name| format!("{name}=http://{}:2380", underlay_address(&name)))
            .collect();
        let mut command = Command::new("etcd");
        command
            .args(["--name", member, "--logger", "zap", "--log-outputs", "stderr", "--pre-vote"])
            .args(["--initial-cluster-state", "new", "--initial-cluster-token", self.name.as_str()])
            .arg("--data-dir")
            .arg(data.join(member))
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--listen-peer-urls", &format!("http://{address}:2380")])
            .args(["--initial-advertise-peer-urls", &format!("http://{address}:2380")])
            .args(["--listen-client-urls", &format!("http://{address}:2379,http://127.0.0.1:2379")])
            .args(["--advertise-client-urls", &format!("http://{address}:2379")]);
        self.start(member, command).context("is etcd installed? deploy/setup.sh installs it")
    }

    fn start(&self, machine: &str, command: Command) -> Result<()> {
        let cgroup = cgroup::create(&self.name, machine)?;
        process::start_daemon(
            command,
            &self.name.machine_namespace(machine),
            &cgroup,
            &self.log_path(machine),
        )?;
        Ok(())
    }

    /// The key of the lab's gossip, made by the agent's own command.
    fn write_key(&self) -> Result<()> {
        let output = Command::new(self.spec.programs.join("warrend"))
            .arg("keygen")
            .arg(self.key_path())
            .output()
            .context("run warrend keygen")?;
        if !output.status.success() {
            bail!("warrend keygen: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn key_path(&self) -> PathBuf {
        self.name.folder().join("gossip.key")
    }

    fn config_path(&self, node: &str) -> PathBuf {
        self.name.folder().join(format!("{node}.toml"))
    }

    /// Where a machine's programs write what they have to say.
    pub fn log_path(&self, machine: &str) -> PathBuf {
        self.name.folder().join(format!("{machine}.log"))
    }

    /// A node's socket.
    pub fn socket_path(&self, node: &str) -> PathBuf {
        self.name.folder().join(node).join("warren.sock")
    }

    /// Where a node's maps, programs and links are pinned.
    pub fn pin_path(&self, node: &str) -> PathBuf {
        self.name.pin_folder().join(node)
    }

    /// A client of a node's agent.
    pub fn api(&self, node: &str) -> Client {
        Client::new(self.socket_path(node))
    }

    fn write_config(&self, node: &str) -> Result<()> {
        let text = crate::config::render(self, node);
        let path = self.config_path(node);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// The key file's and the configuration's places, for [`crate::config`].
    pub(crate) fn gossip_key(&self) -> PathBuf {
        self.key_path()
    }

    /// Starts a node's agent.
    ///
    /// # Errors
    /// When the program cannot be started; what it says of its configuration is in its log.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        if !self.agent_processes(node)?.is_empty() {
            bail!("the agent of {node} runs already");
        }
        let mut command = Command::new(self.spec.programs.join("warrend"));
        command.arg("--config").arg(self.config_path(node));
        self.start(node, command)
    }

    /// The agent's processes: those of a node's cgroup.
    ///
    /// # Errors
    /// When cgroups cannot be read.
    pub fn agent_processes(&self, node: &str) -> Result<Vec<i32>> {
        cgroup::processes(&cgroup::lab_folder(&self.name)?.join(node))
    }

    /// Sends a signal to a node's agent and waits until it has ended.
    ///
    /// # Errors
    /// When it runs not, or does not end in time.
    pub fn end_agent(&self, node: &str, signal: Signal) -> Result<()> {
        self.check_node(node)?;
        let inside = self.agent_processes(node)?;
        if inside.is_empty() {
            bail!("the agent of {node} does not run");
        }
        for pid in inside {
            process::signal(pid as u32, signal)?;
        }
        wait::until(&format!("the agent of {node} to end"), STOP_LIMIT, || {
            let left = self.agent_processes(node)?;
            if left.is_empty() { Ok(()) } else { Err(anyhow!("still there: {left:?}")) }
        })
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

    /// Waits until every agent is ready and knows every other.
    ///
    /// # Errors
    /// With the end of the log of the agent that is not.
    pub fn wait_ready(&self) -> Result<()> {
        for node in self.spec.node_names() {
            self.wait_node_ready(&node)?;
        }
        Ok(())
    }

    /// Waits until one agent is ready and knows every other.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn wait_node_ready(&self, node: &str) -> Result<()> {
        let wanted = usize::from(self.spec.nodes);
        wait::until(&format!("the agent of {node}"), READY_LIMIT, || {
            if self.agent_processes(node)?.is_empty() {
                bail!("its process has ended");
            }
            let status = crate::block_on(self.api(node).status())?;
            if let Some(halted) = status.halted {
                bail!("halted: {}", halted.reason);
            }
            if !status.ready || status.nodes < wanted {
                bail!("ready: {}, knows {} of {wanted} nodes", status.ready, status.nodes);
            }
            let tunnels = crate::block_on(self.api(node).state())?.nodes.len();
            if tunnels + 1 < wanted {
                bail!("tunnels to {tunnels} of {} nodes", wanted - 1);
            }
            Ok(())
        })
        .with_context(|| {
            format!("log of {node} ({}):\n{}", self.log_path(node).display(), self.log_end(node))
        })
    }

    /// The last lines of a machine's log.
    pub fn log_end(&self, machine: &str) -> String {
        let text = fs::read_to_string(self.log_path(machine)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// How each machine is, and which endpoints there are.
    ///
    /// # Errors
    /// When the lab's folders cannot be read; an agent that does not answer is a problem of its machine.
    pub fn status(&self) -> Result<LabStatus> {
        let mut machines = Vec::new();
        let mut endpoints = Vec::new();
        for name in self.spec.node_names().chain(self.spec.etcd_names()) {
            let is_node = name.starts_with('n');
            let processes = cgroup::processes(&cgroup::lab_folder(&self.name)?.join(&name))?;
            let problem = if processes.is_empty() {
                Some("no process".to_owned())
            } else if is_node {
                self.node_problem(&name)
            } else {
                None
            };
            if is_node && problem.is_none() {
                endpoints.extend(self.endpoints_of(&name)?);
            }
            machines.push(MachineStatus {
                underlay: underlay_address(&name).to_string(),
                namespace: self.name.machine_namespace(&name),
                processes,
                socket: is_node.then(|| self.socket_path(&name)),
                problem,
                name,
            });
        }
        Ok(LabStatus { name: self.name.as_str().to_owned(), machines, endpoints })
    }

    fn node_problem(&self, node: &str) -> Option<String> {
        match crate::block_on(self.api(node).status()) {
            Err(error) => Some(error.to_string()),
            Ok(status) => match status.halted {
                Some(halted) => Some(format!("halted: {}", halted.reason)),
                None => (!status.ready).then(|| "not ready".to_owned()),
            },
        }
    }

    /// Takes everything of a lab away, whatever state it is in; goes on past what fails. Says what it removed.
    ///
    /// # Errors
    /// With everything that could not be removed.
    pub fn down(&self) -> Result<Vec<String>> {
        take_down(&self.name)
    }
}

/// Takes everything of a lab away by its name alone. Doing it again removes nothing more.
///
/// # Errors
/// With everything that could not be removed.
pub fn take_down(name: &LabName) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut failures = Vec::new();
    let mut note = |what: &str, result: Result<usize>| match result {
        Ok(0) => {}
        Ok(count) => removed.push(format!("{count} {what}")),
        Err(error) => failures.push(format!("{what}: {error:#}")),
    };
    note("processes", cgroup::lab_folder(name).and_then(|folder| cgroup::destroy(&folder)));
    note(
        "network namespaces",
        namespace::list(&name.namespace_prefix()).and_then(|all| {
            all.iter().try_fold(0, |count, one| Ok(count + usize::from(namespace::delete(one)?)))
        }),
    );
    note("folders of pins", remove_folder(&name.pin_folder()));
    note("folders of etcd data", remove_folder(&name.etcd_data_folder()));
    // The lab's own folder goes last, and only when nothing is left that its name would have to find.
    if failures.is_empty() {
        match remove_folder(&name.folder()) {
            Ok(0) => {}
            Ok(_) => removed.push("1 folder of state and logs".to_owned()),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    for parent in [labs_folder(), PathBuf::from("/sys/fs/bpf/warren-lab")] {
        // Shared with other labs: goes with the last one.
        let _still_used = fs::remove_dir(parent);
    }
    if let Ok(mount) = cgroup::mount_point() {
        let _still_used = fs::remove_dir(mount.join("warren-lab"));
    }
    if failures.is_empty() { Ok(removed) } else { bail!("lab {}: {}", name.as_str(), failures.join("; ")) }
}

fn remove_folder(path: &Path) -> Result<usize> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(1),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}
