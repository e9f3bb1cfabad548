//! Starting and stopping agents and etcd members, and waiting until a fleet is complete.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use node_api::ClientError;

use crate::{
    Lab, ask, cgroup, interrupt, process,
    spec::underlay_address,
    wait::{self, Hopeless},
};

/// The program of an agent.
pub(crate) const AGENT: &str = "warrend";
/// How long a fleet may take from the last start of an agent until every agent knows every other one. Ten agents with
/// debug builds on two cores take about 10 s.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long an agent may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(15);

impl Lab {
    /// Starts all etcd members and all agents at the same moment, and waits until every agent is ready and knows
    /// every other one.
    ///
    /// # Errors
    /// When a process does not come up; the text holds the end of its log.
    pub fn start(&self) -> Result<()> {
        for member in self.spec().etcd_names() {
            self.start_etcd(&member)?;
        }
        for node in self.spec().node_names() {
            self.start_agent(&node)?;
        }
        self.report("waiting until every agent is ready and knows every other");
        self.spec().node_names().try_for_each(|node| self.wait_node_ready(&node))
    }

    /// Starts an etcd member on its existing data.
    ///
    /// # Errors
    /// When etcd is not installed.
    pub fn start_etcd(&self, member: &str) -> Result<()> {
        let address = underlay_address(member);
        let data = self.name().etcd_data_folder();
        fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let mut command = Command::new("etcd");
        command
            .args(["--name", member, "--logger", "zap", "--log-outputs", "stderr", "--pre-vote"])
            .args(["--initial-cluster-state", "new", "--initial-cluster-token", &self.etcd_token()])
            .arg("--data-dir")
            .arg(data.join(member))
            .args(["--initial-cluster", &self.etcd_cluster()])
            .args(["--listen-peer-urls", &format!("http://{address}:2380")])
            .args(["--initial-advertise-peer-urls", &format!("http://{address}:2380")])
            .args(["--listen-client-urls", &format!("http://{address}:2379,http://127.0.0.1:2379")])
            .args(["--advertise-client-urls", &format!("http://{address}:2379")]);
        self.run_on(member, command).context("is etcd installed? deploy/setup.sh installs it")
    }

    /// All members with their peer URLs, in the form of etcd's flags.
    pub(crate) fn etcd_cluster(&self) -> String {
        let members = self.spec().etcd_names();
        let urls: Vec<String> =
            members.map(|name| format!("{name}=http://{}:2380", underlay_address(&name))).collect();
        urls.join(",")
    }

    /// The cluster token: together with the members, it determines etcd's cluster id.
    pub(crate) fn etcd_token(&self) -> String {
        let count = fs::read_to_string(self.etcd_token_path()).unwrap_or_default();
        format!("{}{count}", self.name().as_str())
    }

    /// Gives etcd's cluster another id.
    pub(crate) fn change_etcd_token(&self) -> Result<()> {
        let next = fs::read_to_string(self.etcd_token_path()).unwrap_or_default() + "+";
        fs::write(self.etcd_token_path(), next).context("write etcd's token")
    }

    fn etcd_token_path(&self) -> PathBuf {
        self.name().folder().join("etcd-token")
    }

    /// Starts a node's agent.
    ///
    /// # Errors
    /// When the agent runs already, or the program cannot be started. Errors in its configuration are in its log.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        self.start_agent_with(node, &[])
    }

    /// Starts a node's agent with flags in addition to its configuration.
    ///
    /// # Errors
    /// As [`Self::start_agent`].
    pub fn start_agent_with(&self, node: &str, flags: &[&str]) -> Result<()> {
        self.start_agent_of(AGENT, node, flags)
    }

    /// Starts a node's agent from another program of the same directory.
    ///
    /// # Errors
    /// As [`Self::start_agent`].
    pub fn start_agent_of(&self, program: &str, node: &str, flags: &[&str]) -> Result<()> {
        self.check_node(node)?;
        if !self.processes(node)?.is_empty() {
            bail!("the agent of {node} runs already");
        }
        let mut command = self.agent_command(program);
        command.arg("--config").arg(self.config_path(node)).args(&self.spec().agent_flags).args(flags);
        self.run_on(node, command)
    }

    fn run_on(&self, machine: &str, command: Command) -> Result<()> {
        interrupt::check()?;
        let cgroup = cgroup::create(self.name(), machine)?;
        process::start_daemon(
            command,
            &self.name().machine_namespace(machine),
            &cgroup,
            &self.log_path(machine),
        )
    }

    /// The processes of a machine: its agent, or its etcd.
    ///
    /// # Errors
    /// When cgroups cannot be read.
    pub fn processes(&self, machine: &str) -> Result<Vec<i32>> {
        cgroup::processes(&self.cgroup(machine)?)
    }

    fn cgroup(&self, machine: &str) -> Result<PathBuf> {
        Ok(cgroup::lab_folder(self.name())?.join(machine))
    }

    /// Sends a signal to the processes of a machine, and waits until they have ended.
    ///
    /// # Errors
    /// When the machine has no process, or one does not end in time.
    pub fn end(&self, machine: &str, signal: Signal) -> Result<()> {
        let inside = self.processes(machine)?;
        if inside.is_empty() {
            bail!("nothing runs on {machine}");
        }
        for pid in inside {
            process::signal(pid, signal)?;
        }
        wait::until(&format!("the end of what runs on {machine}"), STOP_LIMIT, || {
            let left = cgroup::threads(&self.cgroup(machine)?)?;
            if left.is_empty() { Ok(()) } else { Err(anyhow!("still there: {left:?}")) }
        })
    }

    /// Waits until an agent is ready and knows every other one.
    ///
    /// # Errors
    /// When the process has ended, the agent reports that it cannot go on, or it takes too long; the text holds the
    /// end of its log.
    pub fn wait_node_ready(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        let wanted = usize::from(self.spec().nodes);
        wait::until(&format!("the agent of {node}"), READY_LIMIT, || {
            if self.processes(node)?.is_empty() {
                return Err(Hopeless("its process has ended".to_owned()).into());
            }
            let status = ask(self.api(node).status()).map_err(hopeless_if_undecodable)?;
            if let Some(halted) = status.halted {
                return Err(Hopeless(format!("halted: {}", halted.reason)).into());
            }
            if !status.ready || status.nodes < wanted {
                bail!("ready: {}, knows {} of {wanted} nodes", status.ready, status.nodes);
            }
            let peers = status.gossip.peers.iter().filter(|peer| peer.alive).count();
            if peers + 1 < wanted {
                bail!("hears {peers} of {} nodes by gossip", wanted - 1);
            }
            let tunnels = ask(self.api(node).state())?.rows("nodes").len();
            if tunnels + 1 < wanted {
                bail!("tunnels to {tunnels} of {} nodes", wanted - 1);
            }
            Ok(())
        })
        .with_context(|| {
            format!("the log of {node} ({}) ends with\n{}", self.log_path(node).display(), self.log_end(node))
        })
    }
}

/// An agent of another version than this program will not change while it is waited for.
fn hopeless_if_undecodable(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Undecodable(_)) => Hopeless(format!("{error:#}")).into(),
        _ => error,
    }
}
