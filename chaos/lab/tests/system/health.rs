//! Backends that die, are drained, or lose their node, under a load of new connections: who notices, and who does not.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chaos_lab::{Endpoint, ask, namespace, wait};
use nix::sys::signal::Signal;
use node_api::{BackendState, ServiceBackend};

use crate::support::{SOON, TestLab};

/// What one request may take. Nothing is lost here: it only ends a test that has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Who makes requests side by side, and how long each of them holds its connection.
const CLIENTS: usize = 3;
const HELD: Duration = Duration::from_millis(10);
const PORT: u16 = 8080;

/// A workload that takes connections and tells each, once it is asked, its own name.
struct Backend {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(endpoint: &Endpoint) -> Self {
        let listener =
            namespace::inside(&endpoint.namespace, || Ok(TcpListener::bind(("0.0.0.0", PORT))?)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (accepting, ended) = (listener.try_clone().unwrap(), stop.clone());
        let name = endpoint.name.clone();
        let thread = thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(mut stream) = stream else { return };
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let name = name.clone();
                thread::spawn(move || {
                    // Health checks come and go without a word.
                    if stream.read_exact(&mut [0]).is_ok() {
                        drop(stream.write_all(name.as_bytes()));
                    }
                });
            }
        });
        Self { listener, stop, thread: Some(thread) }
    }
}

impl Drop for Backend {
    /// The workload dies: whoever comes now is refused by its kernel.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _woken = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        self.thread.take().map(JoinHandle::join);
    }
}

/// One request: who answers it.
fn request(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    thread::sleep(HELD);
    stream.write_all(b"?")?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    if name.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(name) }
}

/// What came of a request that began at a moment.
type Outcome = (Instant, Result<String, ErrorKind>);

/// Requests, one after the other, from several clients of one workload.
struct Load {
    stop: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(from: &Endpoint, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let outcomes: Arc<Mutex<Vec<Outcome>>> = Arc::default();
        let client = || {
            let (stop, outcomes, from) = (stop.clone(), outcomes.clone(), from.namespace.clone());
            thread::spawn(move || {
                namespace::inside(&from, || {
                    while !stop.load(Ordering::Relaxed) {
                        let begin = Instant::now();
                        let result = request(to).map_err(|error| error.kind());
                        outcomes.lock().unwrap().push((begin, result));
                    }
                    Ok(())
                })
                .unwrap();
            })
        };
        let threads = (0..CLIENTS).map(|_| client()).collect();
        Self { stop, outcomes, threads }
    }

    /// What requests that began since a moment have come to: by name, or what went wrong.
    fn since(&self, moment: Instant) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, result) in self.outcomes.lock().unwrap().iter().filter(|(begin, _)| *begin >= moment) {
            let text = result.clone().unwrap_or_else(|kind| format!("failed: {kind}"));
            *counts.entry(text).or_default() += 1;
        }
        counts
    }

    /// Waits until so many requests that began since a moment have ended.
    fn wait_for(&self, count: usize, moment: Instant) -> BTreeMap<String, usize> {
        wait::until(&format!("{count} requests"), SOON, || {
            let counts = self.since(moment);
            ensure!(counts.values().sum::<usize>() >= count, "{counts:?}");
            Ok(counts)
        })
        .unwrap()
    }

    fn end(mut self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut *self.outcomes.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn apply(lab: &TestLab, health_check: &str) -> SocketAddr {
    let manifest = format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         ports: [{{port: 80, targetPort: {PORT}}}]\n{health_check}"
    );
    let file = lab.name().folder().join("web.yaml");
    fs::write(&file, manifest).unwrap();
    let (code, stdout, stderr) = lab.warren("n1", &["apply", "-f", file.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let vip = stdout.trim().strip_prefix("service web created: virtual IP ").expect("created");
    SocketAddr::new(vip.parse().unwrap(), 80)
}

fn backends(lab: &TestLab, node: &str) -> Result<BTreeMap<IpAddr, ServiceBackend>> {
    let service = ask(lab.api(node).service(&"web".parse()?))?;
    ensure!(ask(lab.api(node).status())?.apply.pending == 0, "the kernel of {node} is behind");
    let backends = service.ports.into_iter().flat_map(|port| port.backends);
    Ok(backends.map(|backend| (backend.address, backend)).collect())
}

/// Waits until these backends, and no others, are so on a node, and its kernel has them so.
fn wait_states(lab: &TestLab, node: &str, expected: &[(&Endpoint, BackendState)]) {
    let expected: BTreeMap<IpAddr, BackendState> =
        expected.iter().map(|(endpoint, state)| (endpoint.address, *state)).collect();
    wait::until(&format!("states of backends on {node}"), SOON, || {
        let found: BTreeMap<IpAddr, BackendState> =
            backends(lab, node)?.into_iter().map(|(address, backend)| (address, backend.state)).collect();
        ensure!(found == expected, "they are {found:?}, not {expected:?}");
        Ok(())
    })
    .unwrap();
}

/// Connections of a workload's port that are not at their end.
fn connections(endpoint: &Endpoint) -> Result<usize> {
    namespace::inside(&endpoint.namespace, || {
        let table = fs::read_to_string("/proc/thread-self/net/tcp")?;
        let local = format!(":{PORT:04X}");
        // Established, half open, or closed by the other side alone (include/net/tcp_states.h).
        let open = |state: &str| matches!(state, "01" | "03" | "08");
        let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        Ok(fields.filter(|fields| fields[1].ends_with(&local) && open(fields[3])).count())
    })
}

#[test]
fn a_backend_that_dies_gets_no_new_connection_and_nobody_else_notices() {
    use BackendState::{Active, Unhealthy};
    let Some(lab) = TestLab::up("health", 2, 1) else { return };
    let web = [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")]
        .map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let client = lab.endpoint("n1", "client", "app=client");
    let [one, two, three] = web.each_ref().map(Backend::start);
    let to = apply(
        &lab,
        "  healthCheck: {tcp: {}, interval: 500ms, unhealthyThreshold: 3, healthyThreshold: 1}\n",
    );
    for node in ["n1", "n2"] {
        wait_states(&lab, node, &[(&web[0], Active), (&web[1], Active), (&web[2], Active)]);
    }
    let load = Load::start(&client, to);
    assert_eq!(load.wait_for(200, Instant::now()).len(), 3, "all answer, and nothing fails");

    let killed = Instant::now();
    drop(two);
    wait_states(&lab, "n1", &[(&web[0], Active), (&web[1], Unhealthy), (&web[2], Active)]);
    let settled = Instant::now();
    let after = load.wait_for(300, settled);
    assert_eq!(after.keys().map(String::as_str).collect::<Vec<_>>(), ["web-1", "web-3"], "{after:?}");
    wait_states(&lab, "n2", &[(&web[0], Active), (&web[1], Unhealthy), (&web[2], Active)]);
    let state = &backends(&lab, "n1").unwrap()[&web[1].address];
    assert_eq!(state.reason.as_deref(), Some("connection refused"));

    let again = Backend::start(&web[1]);
    wait_states(&lab, "n1", &[(&web[0], Active), (&web[1], Active), (&web[2], Active)]);
    assert_eq!(load.wait_for(200, Instant::now()).len(), 3, "all answer again");

    // Whatever failed was refused by the dead one's kernel, while it was still thought to be well.
    let outcomes = load.end();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|(_, result)| result.is_err()).collect();
    for (begin, result) in &failed {
        assert!(*begin < settled, "failed after the backend had been taken out: {result:?}");
        assert!(
            matches!(
                result,
                Err(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
            ),
            "{result:?}"
        );
    }
    let last = failed.iter().map(|(begin, _)| begin.duration_since(killed)).max();
    eprintln!("{} of {} requests failed, the last one {last:?} after the kill", failed.len(), outcomes.len());
    drop((one, three, again));
}

#[test]
fn all_backends_are_replaced_without_a_failed_request() {
    use BackendState::{Active, Terminating};
    let Some(lab) = TestLab::up("rolling", 2, 1) else { return };
    let client = lab.endpoint("n1", "client", "app=client");
    let start = |node: &str, name: &str| {
        let endpoint = lab.endpoint(node, name, "app=web");
        let backend = Backend::start(&endpoint);
        (endpoint, backend)
    };
    let former = [start("n1", "old-1"), start("n2", "old-2"), start("n2", "old-3")];
    // A new one is not asked for anything before it has answered its node once.
    let to = apply(&lab, "  healthCheck: {interval: 500ms, healthyThreshold: 1}\n");
    let all: Vec<_> = former.iter().map(|(endpoint, _)| (endpoint, Active)).collect();
    wait_states(&lab, "n1", &all);
    let load = Load::start(&client, to);
    assert_eq!(load.wait_for(100, Instant::now()).len(), 3);

    let mut new = Vec::new();
    for (old, server) in former {
        let next = start(&old.node, &old.name.replace("old", "new"));
        let drained = lab.warren(&old.node, &["endpoint", "drain", &old.name]);
        assert_eq!(drained, (0, format!("endpoint {} takes no new flows\n", old.name), String::new()));
        let address = next.0.address;
        new.push(next);
        wait::until("the old one to be out, and the new one in", SOON, || {
            let states = backends(&lab, "n1")?;
            let state = |address| states.get(&address).map(|backend| backend.state);
            ensure!(state(old.address) == Some(Terminating), "{states:?}");
            ensure!(state(address) == Some(Active), "{states:?}");
            Ok(())
        })
        .unwrap();
        wait::until("its connections to end", SOON, || {
            let open = connections(&old)?;
            ensure!(open == 0, "{open} are open");
            Ok(())
        })
        .unwrap();
        lab.delete_endpoint(&old.node, &old.name).unwrap();
        drop(server);
    }
    let after = load.wait_for(200, Instant::now());
    assert_eq!(after.keys().map(String::as_str).collect::<Vec<_>>(), ["new-1", "new-2", "new-3"]);
    let outcomes = load.end();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|(_, result)| result.is_err()).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), outcomes.len());
    eprintln!("{} requests, none failed", outcomes.len());
}

/// Nobody asked for a check: that nodes die is everybody's affair.
#[test]
fn a_dead_agent_keeps_its_backends_and_a_dead_node_does_not() {
    use BackendState::{Active, Unhealthy};
    let Some(mut lab) = TestLab::up("node-death", 2, 1) else { return };
    lab.expect_errors();
    let web = [("n1", "web-1"), ("n2", "web-2")].map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let client = lab.endpoint("n1", "client", "app=client");
    let _servers = web.each_ref().map(Backend::start);
    let to = apply(&lab, "");
    let both = [(&web[0], Active), (&web[1], Active)];
    wait_states(&lab, "n1", &both);

    lab.end("n2", Signal::SIGKILL).unwrap();
    wait::until("n1 to hear nothing of n2's agent", SOON, || {
        let status = ask(lab.api("n1").status())?;
        ensure!(status.gossip.peers.iter().all(|peer| !peer.alive), "it hears it");
        Ok(())
    })
    .unwrap();
    let load = Load::start(&client, to);
    let answers = load.wait_for(100, Instant::now());
    assert_eq!(answers.keys().map(String::as_str).collect::<Vec<_>>(), ["web-1", "web-2"], "{answers:?}");
    wait_states(&lab, "n1", &both);
    load.end();

    lab.start_agent("n2").unwrap();
    lab.wait_node_ready("n2").unwrap();
    lab.wait_node_ready("n1").unwrap();
    wait_states(&lab, "n1", &both);
    let died = Instant::now();
    let link = |state: &str| {
        namespace::ip(["-n", &lab.name().underlay_namespace(), "link", "set", "n2", state]).unwrap();
    };
    link("down");
    lab.end("n2", Signal::SIGKILL).unwrap();
    wait_states(&lab, "n1", &[(&web[0], Active), (&web[1], Unhealthy)]);
    eprintln!("a dead node's backends were out after {:?}", died.elapsed());
    let reason = backends(&lab, "n1").unwrap()[&web[1].address].reason.clone();
    assert_eq!(reason.as_deref(), Some("node n2 does not answer"));
    let load = Load::start(&client, to);
    let answers = load.wait_for(50, Instant::now());
    assert_eq!(answers.keys().map(String::as_str).collect::<Vec<_>>(), ["web-1"], "{answers:?}");
    load.end();
    // Its agent stays away: the node answers again, and that is enough.
    link("up");
    wait_states(&lab, "n1", &both);
}
