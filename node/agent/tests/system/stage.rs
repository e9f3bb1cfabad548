//! The environment of a test: a node and endpoints as network namespaces, and an agent process.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::Uid,
};
use node_api::{Client, EndpointAdd, EndpointAdded, Status};

/// Longer than any step takes, also under load.
const DEADLINE: Duration = Duration::from_secs(30);
/// The interval of polling a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The node of one test. Dropping it removes everything, also after a panic.
pub struct Stage {
    name: String,
    folder: tempfile::TempDir,
    namespaces: Vec<String>,
    runtime: tokio::runtime::Runtime,
}

/// A running agent; killed when dropped.
pub struct Agent {
    process: Child,
    log: PathBuf,
}

impl Stage {
    /// A node's namespace with an underlay address. `None`, with the reason printed, where it cannot be made.
    pub fn new() -> Option<Self> {
        if !Uid::effective().is_root() {
            println!("skipped: needs root");
            return None;
        }
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            println!("skipped: needs a kernel with BTF");
            return None;
        }
        let name = format!("wt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        let mut stage = Self { name, folder, namespaces: Vec::new(), runtime };
        let node = stage.add_namespace("node");
        for arguments in [
            "link set lo up",
            "link add under0 type veth peer name under1",
            "address add 192.0.2.10/24 dev under0",
            "link set under0 up",
            "link set under1 up",
        ] {
            run("ip", ["-n", &node].into_iter().chain(arguments.split(' ')));
        }
        fs::write(stage.path("warren.toml"), stage.configuration()).unwrap();
        Some(stage)
    }

    fn configuration(&self) -> String {
        format!(
            "store = \"memory\"\n[node]\nname = \"node\"\nmachine_id = \"{name}\"\nstate_dir = \"{folder}/state\"\n\
             run_dir = \"{folder}/run\"\n[datapath]\npin_root = \"{pins}\"\nunderlay_address = \"192.0.2.10\"\n\
             socket_lb = false\n",
            name = self.name,
            folder = self.folder.path().display(),
            pins = self.pin_root().display(),
        )
    }

    /// Adds a namespace, and returns its name.
    pub fn add_namespace(&mut self, role: &str) -> String {
        let name = format!("{}-{role}", self.name);
        run("ip", ["netns", "add", &name]);
        self.namespaces.push(name.clone());
        name
    }

    /// A path in the test's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The pin folder of this test's agent.
    pub fn pin_root(&self) -> PathBuf {
        format!("/sys/fs/bpf/warren-test-{}", self.name).into()
    }

    /// The node's namespace.
    pub fn node(&self) -> &str {
        &self.namespaces[0]
    }

    /// `warrend` with this test's configuration, in the node's namespace.
    pub fn warrend(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warrend"));
        command.arg("--config").arg(self.path("warren.toml")).args(arguments);
        enter(&mut command, self.node());
        command
    }

    /// A program that will run in a namespace and end with the test.
    pub fn command(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new(program);
        enter(&mut command, namespace);
        command
    }

    /// The output and exit status of a command in a namespace.
    pub fn output(&self, namespace: &str, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(namespace, program);
        command.args(arguments);
        command.output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&self, arguments: &[&str]) -> Agent {
        let log = self.path(&format!("log-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&log).unwrap();
        let process = self.warrend(arguments).stderr(file).stdout(Stdio::null()).spawn().unwrap();
        let mut agent = Agent { process, log };
        self.wait("the agent answers", || {
            agent.assert_running();
            self.runtime.block_on(self.client().version()).ok()
        });
        agent
    }

    /// [`Self::start`], and waits until it serves.
    pub fn start_ready(&self) -> Agent {
        let agent = self.start(&[]);
        self.wait("the node is ready", || Some(self.status()).filter(|status| status.ready));
        agent
    }

    /// Polls until there is a value.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begin.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    pub fn client(&self) -> Client {
        Client::new(self.path("run/warren.sock"))
    }

    /// Runs a request of the client.
    pub fn ask<T>(&self, question: impl Future<Output = Result<T, node_api::ClientError>>) -> T {
        self.runtime.block_on(question).unwrap()
    }

    pub fn status(&self) -> Status {
        let client = self.client();
        self.ask(client.status())
    }

    /// The request for an endpoint in a namespace of this test.
    pub fn request(&self, name: &str, namespace: &str) -> EndpointAdd {
        let path = format!("/run/netns/{namespace}");
        let text = format!(
            r#"{{"name":"{name}","labels":{{"app":"{name}"}},"attachment":{{"netns":{{"path":"{path}"}}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Adds an endpoint in a new namespace.
    pub fn add_endpoint(&mut self, name: &str) -> (EndpointAdded, String) {
        let namespace = self.add_namespace(name);
        let request = self.request(name, &namespace);
        let client = self.client();
        (self.ask(client.endpoint_add(&request)), namespace)
    }

    /// A raw request to the API: status and body.
    pub fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.path("run/warren.sock")).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n"
        )
        .unwrap();
        write!(stream, "{headers}\r\n").unwrap();
        // The agent may refuse a body that is too long before all of it is sent.
        drop(stream.write_all(body));
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect(&answer);
        (status, answer.split_once("\r\n\r\n").expect("headers end").1.to_owned())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Agents are dropped before, as they borrow nothing but are declared later; a cleanup that fails because
        // one still runs leaves nothing behind either: its namespace and pins go here.
        drop(self.warrend(&["cleanup"]).output());
        for namespace in &self.namespaces {
            drop(Command::new("ip").args(["netns", "delete", namespace]).output());
        }
        drop(fs::remove_dir_all(self.pin_root()));
    }
}

impl Agent {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn assert_running(&mut self) {
        if let Some(status) = self.process.try_wait().unwrap() {
            panic!("the agent ended with {status}:\n{}", self.log());
        }
    }

    /// Sends SIGTERM; the agent must end soon, successfully, and without an ERROR in its log.
    pub fn stop(mut self) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM)
            .unwrap();
        let status = self.process.wait().unwrap();
        let log = self.log();
        assert!(status.success(), "the agent ended with {status}:\n{log}");
        assert!(!log.contains("ERROR"), "{log}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

/// Makes a command run in a namespace and end with the test.
fn enter(command: &mut Command, namespace: &str) {
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    // SAFETY: only `setns` and `prctl` between fork and exec, both async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        });
    }
}

/// Runs a command that must succeed.
fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The text of both output streams.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
