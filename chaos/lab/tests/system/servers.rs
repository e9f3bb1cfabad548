//! Servers that respond with their name, and clients that request it: which server responds, and which client address
//! it sees.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use chaos_lab::{Endpoint, namespace, process};

/// The time-out of one connection. No packet is lost here: the time-out only ends a test that has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A workload that responds, over TCP and UDP, with its own name and the client address that it sees.
pub struct Server {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(endpoint: &Endpoint) -> Self {
        let (listener, datagrams) = namespace::inside(&endpoint.namespace, || {
            Ok((TcpListener::bind("0.0.0.0:8080")?, UdpSocket::bind("0.0.0.0:5353")?))
        })
        .unwrap();
        datagrams.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let answer = |name: &str, peer: SocketAddr| format!("{name} {}", peer.ip());
        let (name, accepting, ended) = (endpoint.name.clone(), listener.try_clone().unwrap(), stop.clone());
        let tcp = thread::spawn(move || {
            for stream in accepting.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { return };
                let Ok(peer) = stream.peer_addr() else { continue };
                // The client may be gone.
                drop(stream.write_all(answer(&name, peer).as_bytes()));
            }
        });
        let (name, ended) = (endpoint.name.clone(), stop.clone());
        let udp = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = datagrams.recv_from(&mut [0; 16]) {
                    drop(datagrams.send_to(answer(&name, peer).as_bytes(), peer));
                }
            }
        });
        Self { listener, stop, threads: vec![tcp, udp] }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        let _woken = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Python's web server on port 8000 of a workload, with one page that names the workload.
pub struct WebServer(Child);

/// Like `python3 -m http.server`, with a longer listen queue and without a pause between header and body.
const WEB_SERVER: &str = "
import http.server, sys
page = sys.argv[1].encode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(page)))
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(page)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
Server(('', 8000), Handler).serve_forever()
";

impl WebServer {
    pub fn start(endpoint: &Endpoint) -> Self {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", WEB_SERVER, &endpoint.name]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        process::enter(&mut command, &endpoint.namespace, None).unwrap();
        Self(command.spawn().unwrap())
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Whether the programs that a test needs are installed; prints the missing ones.
pub fn are_installed(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let mut command = std::process::Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_err()
    });
    if let Some(program) = missing {
        println!("skipped: {program} is not installed");
    }
    missing.is_none()
}

/// The response to one TCP connection: the server's name, and the client address that it saw.
pub fn connect(to: SocketAddr) -> Result<(String, IpAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    drop(stream.shutdown(Shutdown::Both));
    answer(&text)
}

/// As [`connect`], by UDP. Lost datagrams are sent again; a response counts only from the address that the request
/// went to.
pub fn exchange(to: SocketAddr) -> Result<(String, IpAddr)> {
    let socket = fresh_socket()?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    for _ in 0..PATIENCE.as_secs() {
        socket.send(b"who")?;
        let mut buffer = [0; 256];
        match socket.recv(&mut buffer) {
            Ok(length) => return answer(std::str::from_utf8(&buffer[..length])?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no answer from {to}")
}

/// A socket with an unused port: a used one may belong to a flow that still exists and keeps its backend.
fn fresh_socket() -> Result<UdpSocket> {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    loop {
        match UdpSocket::bind(("0.0.0.0", NEXT.fetch_add(1, Ordering::Relaxed))) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            result => return Ok(result?),
        }
    }
}

pub fn answer(text: &str) -> Result<(String, IpAddr)> {
    let (name, address) = text.split_once(' ').with_context(|| format!("{text:?} is no answer"))?;
    Ok((name.to_owned(), address.parse()?))
}

/// The number of responses of each backend to one namespace.
pub fn counts(
    from: &str,
    to: SocketAddr,
    times: usize,
    once: fn(SocketAddr) -> Result<(String, IpAddr)>,
) -> Result<BTreeMap<String, usize>> {
    namespace::inside(from, || {
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            *counts.entry(once(to)?.0).or_default() += 1;
        }
        Ok(counts)
    })
}
