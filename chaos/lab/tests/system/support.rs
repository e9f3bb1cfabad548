//! Labs for tests: skipped if the system does not allow them, and always taken down.

use std::{
    fs,
    ops::Deref,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use chaos_lab::{
    Endpoint, Lab, LabName, Spec, ask, kernel_ipcache, namespace, spec::underlay_address, take_down, wait,
};
use identity::{Identity, Labels};
use node_api::{Client, CounterRow, FlowEvent, Listing, ObserveLine, ServiceWritten, Verdict};
use serde::de::DeserializeOwned;

/// How long a fleet may take for anything it does by itself: generous, as only failures wait so long.
pub const SOON: Duration = Duration::from_secs(60);

/// `warren-lab`, as built for this test.
pub const WARREN_LAB: &str = env!("CARGO_BIN_EXE_warren-lab");

/// A lab that is taken down with its test.
pub struct TestLab {
    lab: Lab,
    errors_expected: bool,
}

impl TestLab {
    /// A complete fleet; `None`, with the reason printed, if the system does not allow one.
    pub fn up(test: &str, nodes: u8, etcd: u8) -> Option<Self> {
        Self::up_with(test, nodes, etcd, |_| {})
    }

    /// As [`TestLab::up`], with a changed specification.
    pub fn up_with(test: &str, nodes: u8, etcd: u8, change: impl FnOnce(&mut Spec)) -> Option<Self> {
        let lab = Self::made_with(test, nodes, etcd, change)?;
        lab.bring_up(Lab::start).unwrap();
        Some(lab)
    }

    /// A lab in which nothing runs yet.
    pub fn made(test: &str, nodes: u8, etcd: u8) -> Option<Self> {
        Self::made_with(test, nodes, etcd, |_| {})
    }

    /// As [`TestLab::made`], with a changed specification.
    pub fn made_with(test: &str, nodes: u8, etcd: u8, change: impl FnOnce(&mut Spec)) -> Option<Self> {
        let name = lab_name(test)?;
        let mut spec = Spec::new(nodes, etcd).unwrap();
        change(&mut spec);
        let lab = Lab::make(name, spec, |line| eprintln!("{line}")).unwrap();
        Some(Self { lab, errors_expected: false })
    }

    /// Allows errors in the agents' logs: the test causes them.
    pub fn expect_errors(&mut self) {
        self.errors_expected = true;
    }

    /// Adds an endpoint.
    pub fn endpoint(&self, node: &str, name: &str, labels: &str) -> Endpoint {
        self.add_endpoint(node, name, &labels.parse::<Labels>().unwrap()).unwrap()
    }

    /// A machine on the underlay that does not belong to the fleet, as the other end of traffic.
    pub fn external_machine(&self, machine: &str) -> Endpoint {
        self.add_machine(machine).unwrap();
        Endpoint {
            node: machine.to_owned(),
            name: machine.to_owned(),
            namespace: self.name().machine_namespace(machine),
            address: underlay_address(machine).into(),
            identity: Identity::WORLD.get(),
            labels: String::new(),
        }
    }

    /// Runs `warren` on a node; returns exit code, standard output and standard error.
    pub fn warren(&self, node: &str, arguments: &[&str]) -> (i32, String, String) {
        let mut command = self.command(node, "warren").unwrap();
        finish(command.args(arguments))
    }

    /// Runs `warren` on a node with JSON output.
    pub fn warren_json<T: DeserializeOwned>(&self, node: &str, arguments: &[&str]) -> T {
        let (code, stdout, stderr) = self.warren(node, &[arguments, &["-o", "json"]].concat());
        assert_eq!((code, stderr.as_str()), (0, ""), "warren {arguments:?} on {node}");
        serde_json::from_str(&stdout).unwrap()
    }

    /// The number of packets that a node has dropped for a reason.
    pub fn drops(&self, node: &str, reason: &str) -> u64 {
        let rows: Listing<CounterRow> = self.warren_json(node, &["drops"]);
        rows.items.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum()
    }

    /// Waits until a node has observed a matching drop for a reason.
    pub fn wait_observed_drop(&self, node: &str, reason: &str, fits: impl Fn(&FlowEvent) -> bool) {
        wait::until(&format!("a drop for {reason} in what {node} observed"), SOON, || {
            let events = self.observed_drops(node, reason);
            ensure!(events.iter().any(&fits), "it has {events:#?}");
            ensure!(events.iter().all(|event| event.verdict == Verdict::Dropped), "it has {events:#?}");
            Ok(())
        })
        .unwrap();
    }

    /// The drops for a reason that a node remembers, as shown by `warren observe`.
    fn observed_drops(&self, node: &str, reason: &str) -> Vec<FlowEvent> {
        let (code, stdout, stderr) = self.warren(node, &["observe", "--reason", reason, "-o", "json"]);
        assert_eq!((code, stderr.as_str()), (0, ""));
        stdout
            .lines()
            .map(|line| match serde_json::from_str(line).unwrap() {
                ObserveLine::Event(event) => event,
                ObserveLine::Lagged { events } => panic!("{events} events were lost"),
            })
            .collect()
    }

    /// Applies the manifest of a service through the agent of a node.
    pub fn apply(&self, node: &str, manifest: &str) -> ServiceWritten {
        let file = self.name().folder().join("service.yaml");
        fs::write(&file, manifest).unwrap();
        let written: Listing<ServiceWritten> =
            self.warren_json(node, &["apply", "-f", file.to_str().unwrap()]);
        let [written] = <[ServiceWritten; 1]>::try_from(written.items).expect("one service");
        written
    }

    /// Waits until a node and its kernel have a service as written, with this many backends of each port.
    pub fn wait_served(&self, node: &str, written: &ServiceWritten, backends: usize) {
        wait::until(&format!("the service in the kernel of {node}"), SOON, || {
            let service = ask(self.api(node).service(&written.name))?;
            ensure!(service.revision == written.revision, "revision {}", service.revision);
            ensure!(service.ports.iter().all(|port| port.backends.len() == backends), "backends are missing");
            ensure!(service.ports.iter().all(|port| port.id.is_some()), "a port has no number");
            ensure!(ask(self.api(node).status())?.apply.pending == 0, "its kernel is behind");
            Ok(())
        })
        .unwrap();
    }

    /// Waits until a node's kernel has these addresses in its ipcache, with their identities.
    pub fn wait_in_ipcache<'a>(&self, node: &str, endpoints: impl IntoIterator<Item = &'a Endpoint>) {
        let endpoints: Vec<&Endpoint> = endpoints.into_iter().collect();
        wait::until(&format!("endpoints in the ipcache of {node}"), SOON, || {
            let known = kernel_ipcache(&self.api(node))?;
            for endpoint in &endpoints {
                let identity = known.get(&endpoint.address);
                ensure!(
                    identity == Some(&endpoint.identity),
                    "{} has identity {identity:?}",
                    endpoint.address
                );
            }
            Ok(())
        })
        .unwrap();
    }
}

/// Uses release programs for tests of scale: figures of a debug build mean little.
pub fn use_scale_programs(spec: &mut Spec) {
    if let Some(programs) = std::env::var_os("WARREN_SCALE_PROGRAMS") {
        spec.programs = programs.into();
    }
}

/// The identity of an endpoint's address in a node's kernel.
pub fn ipcache_identity(api: &Client, endpoint: &Endpoint) -> Result<Option<u32>> {
    Ok(kernel_ipcache(api)?.get(&endpoint.address).copied())
}

impl Deref for TestLab {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let nodes: Vec<String> = self.lab.spec().node_names().collect();
        if failed {
            for node in &nodes {
                eprintln!("--- the log of {node} ends with\n{}", self.lab.log_end(node));
            }
        }
        let errors: Vec<String> = nodes.iter().flat_map(|node| errors_in(&self.lab.log_path(node))).collect();
        let result = take_down(self.lab.name());
        if !failed {
            result.unwrap();
            assert!(self.errors_expected || errors.is_empty(), "errors in logs: {errors:#?}");
        }
    }
}

/// The lines of level ERROR in a log.
fn errors_in(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect()
}

/// Runs a command to its end; returns exit code, standard output and standard error.
pub fn finish(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().expect("it was not killed"), text(stdout), text(stderr))
}

/// A lab name for this process, or `None` if the system does not allow a lab. Removes what killed processes left
/// behind: nextest kills tests that take too long.
pub fn lab_name(test: &str) -> Option<LabName> {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return None;
    }
    for left in Lab::list().unwrap() {
        let owner = left.as_str().strip_prefix('t').and_then(|rest| rest.split_once('-'));
        if owner.is_some_and(|(pid, _)| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
        {
            take_down(&left).unwrap();
        }
    }
    Some(LabName::new(&format!("t{}-{test}", std::process::id())).unwrap())
}

/// What a lab needs and this machine lacks.
fn missing() -> Option<&'static str> {
    let mounted = |kind: &str| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind))
    };
    let installed = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    };
    match () {
        () if !nix::unistd::geteuid().is_root() => Some("labs need root"),
        () if !mounted("bpf") => Some("bpffs is not mounted"),
        () if !mounted("cgroup2") => Some("cgroup2 is not mounted"),
        () if !Path::new("/sys/kernel/btf/vmlinux").exists() => Some("the kernel has no BTF"),
        () if !installed("etcd") => Some("etcd is not installed"),
        () => None,
    }
}

/// What exists of a lab outside its own namespaces: nothing before `up` and after `down`.
pub fn remains(name: &LabName) -> Vec<String> {
    let mut found = namespace::list(&name.namespace_prefix()).unwrap();
    let cgroup = chaos_lab::cgroup::lab_folder(name).unwrap();
    let folders = [name.folder(), name.etcd_data_folder(), name.pin_folder(), cgroup];
    found.extend(folders.iter().filter(|folder| folder.exists()).map(|folder| folder.display().to_string()));
    let marks = [name.folder().display().to_string(), name.etcd_data_folder().display().to_string()];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(command) = fs::read_to_string(entry.path().join("cmdline")) else { continue };
        if marks.iter().any(|mark| command.contains(&format!("{mark}/"))) {
            found.push(format!("process {}", command.replace('\0', " ")));
        }
    }
    found
}

/// The devices of the machine's own namespace that have our names.
pub fn our_devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("wrn") || name.starts_with("warren")).collect()
}
