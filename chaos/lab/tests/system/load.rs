//! New connections to a service at a steady rate, the backends that respond, and which connections were disturbed.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::ensure;
use chaos_lab::{Endpoint, namespace, wait};

use crate::support::SOON;

/// The port of the backends.
pub const PORT: u16 = 8080;
/// The time-out of one request. No packet is lost here: the time-out only ends a test that has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long each connection stays open before its request.
const HELD: Duration = Duration::from_millis(10);
/// New connections a second of an ordinary run.
const USUAL_RATE: u32 = 100;
/// New connections a second of one client: it opens them one after the other, with time to spare.
const RATE_OF_ONE: u32 = 25;

/// New connections a second (`WARREN_SCALE_RATE`).
pub fn rate() -> u32 {
    scale_rate().unwrap_or(USUAL_RATE)
}

/// The configured rate, if there is one: on a quiet machine, where promised times are checked.
pub fn scale_rate() -> Option<u32> {
    std::env::var("WARREN_SCALE_RATE").ok()?.parse().ok()
}

/// A workload that accepts connections and responds to each request with its own name.
pub struct Backend {
    listener: TcpListener,
    dead: Arc<AtomicBool>,
    disturbed: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// `client` is the workload whose connections are counted afterwards; other connections are health checks.
    pub fn start(endpoint: &Endpoint, client: &Endpoint) -> Self {
        let listener =
            namespace::inside(&endpoint.namespace, || Ok(TcpListener::bind(("0.0.0.0", PORT))?)).unwrap();
        let (dead, disturbed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let shared = (listener.try_clone().unwrap(), dead.clone(), disturbed.clone());
        let (name, client) = (endpoint.name.clone(), client.address);
        let thread = thread::spawn(move || {
            let (listener, dead, disturbed) = shared;
            while let Ok((stream, peer)) = listener.accept() {
                if dead.load(Ordering::Relaxed) {
                    return;
                }
                let (name, dead, disturbed) = (name.clone(), dead.clone(), disturbed.clone());
                thread::spawn(move || {
                    let answered = answer(stream, &name, &dead);
                    if peer.ip() == client && !matches!(answered, Ok(1..)) {
                        disturbed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Self { listener, dead, disturbed, thread: Some(thread) }
    }

    /// Connections of the client that ended against the client's will, after a response.
    pub fn disturbed(&self) -> usize {
        self.disturbed.load(Ordering::Relaxed)
    }
}

/// Serves one connection until the other side closes it; returns the number of responses.
fn answer(mut stream: TcpStream, name: &str, dead: &AtomicBool) -> io::Result<usize> {
    let mut answers = 0;
    while stream.read(&mut [0])? == 1 {
        if dead.load(Ordering::Relaxed) {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        stream.write_all(name.as_bytes())?;
        answers += 1;
    }
    Ok(answers)
}

impl Drop for Backend {
    /// The workload dies: its kernel refuses new connections, and established ones get no response.
    fn drop(&mut self) {
        self.dead.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _woken = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        self.thread.take().map(JoinHandle::join);
    }
}

/// An open connection of a workload to one given backend.
pub struct Conversation(TcpStream);

impl Conversation {
    pub fn with(backend: &Endpoint, from: &Endpoint, to: SocketAddr) -> Self {
        wait::until("a connection to one backend", SOON, || {
            let stream =
                namespace::inside(&from.namespace, || Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut conversation = Self(stream);
            ensure!(conversation.goes_on_with(backend), "another one has it");
            Ok(conversation)
        })
        .unwrap()
    }

    pub fn goes_on_with(&mut self, backend: &Endpoint) -> bool {
        let mut name = vec![0; backend.name.len()];
        let Self(stream) = self;
        stream.write_all(b"?").and_then(|()| stream.read_exact(&mut name)).is_ok()
            && name == backend.name.as_bytes()
    }
}

/// Sends one request; returns the name of the backend that responds.
fn request(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    thread::sleep(HELD);
    stream.write_all(b"?")?;
    stream.shutdown(Shutdown::Write)?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    if name.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(name) }
}

/// When a request began, and its result.
pub type Outcome = (Instant, Result<String, ErrorKind>);

/// Requests at [`rate`], each on a new connection, from several clients of one workload.
pub struct Load {
    stop: Arc<AtomicBool>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(from: &Endpoint, to: SocketAddr) -> Self {
        // A port is unusable for a minute after its connection has ended: the range must be large enough.
        let ports = || Ok(fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65535")?);
        namespace::inside(&from.namespace, ports).unwrap();
        let (stop, outcomes) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Outcome>>>::default());
        let interval = Duration::from_secs(1) / RATE_OF_ONE;
        let begin = Instant::now();
        let client = |number: u32| {
            let (stop, outcomes, from) = (stop.clone(), outcomes.clone(), from.namespace.clone());
            let mut due = begin + number * Duration::from_secs(1) / rate();
            thread::spawn(move || {
                namespace::inside(&from, || {
                    while !stop.load(Ordering::Relaxed) {
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let begin = Instant::now();
                        let result = request(to).map_err(|error| error.kind());
                        outcomes.lock().unwrap().push((begin, result));
                        // Connections that could not be opened within a second are left out.
                        due = (due + interval).max(begin - Duration::from_secs(1));
                    }
                    Ok(())
                })
                .unwrap();
            })
        };
        let threads = (0..rate().div_ceil(RATE_OF_ONE)).map(client).collect();
        Self { stop, outcomes, threads }
    }

    /// The results of the requests that began after a moment, by backend name or error.
    fn since(&self, moment: Instant) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, result) in self.outcomes.lock().unwrap().iter().filter(|(begin, _)| *begin >= moment) {
            let text = result.clone().unwrap_or_else(|kind| format!("failed: {kind}"));
            *counts.entry(text).or_default() += 1;
        }
        counts
    }

    /// Waits until two seconds' worth of requests that began after a moment have ended.
    pub fn wait_for_more(&self, moment: Instant) -> BTreeMap<String, usize> {
        let count = 2 * rate() as usize;
        wait::until(&format!("{count} requests"), SOON, || {
            let counts = self.since(moment);
            ensure!(counts.values().sum::<usize>() >= count, "{counts:?}");
            Ok(counts)
        })
        .unwrap()
    }

    pub fn end(mut self) -> Vec<Outcome> {
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

/// Requests a second, between the first and the last.
pub fn reached(outcomes: &[Outcome]) -> f64 {
    let begins = || outcomes.iter().map(|(begin, _)| *begin);
    let took = begins().max().zip(begins().min()).map(|(last, first)| last - first);
    outcomes.len() as f64 / took.unwrap_or_default().as_secs_f64()
}

/// The open connections of a workload's port.
pub fn connections(endpoint: &Endpoint) -> anyhow::Result<usize> {
    namespace::inside(&endpoint.namespace, || {
        let table = fs::read_to_string("/proc/thread-self/net/tcp")?;
        let local = format!(":{PORT:04X}");
        // ESTABLISHED, SYN_RECV and CLOSE_WAIT (include/net/tcp_states.h).
        let open = |state: &str| matches!(state, "01" | "03" | "08");
        let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        Ok(fields.filter(|fields| fields[1].ends_with(&local) && open(fields[3])).count())
    })
}
