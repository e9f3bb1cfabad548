//! A server that says who asked, and clients that ask it.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use super::BACKEND_PORT;
use crate::stage::Namespace;

/// Longer than any response takes here, also on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Responds in a namespace, over TCP and UDP, with its own address and the client's, until `stop` is set.
pub fn serve_echo<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    workload: &Namespace,
    at: Ipv4Addr,
    stop: &'scope AtomicBool,
) {
    let (listener, socket) = workload.enter(|| {
        let listener = TcpListener::bind((at, BACKEND_PORT)).expect("listen");
        (listener, UdpSocket::bind((at, BACKEND_PORT)).expect("bind"))
    });
    listener.set_nonblocking(true).expect("non-blocking mode");
    socket.set_nonblocking(true).expect("non-blocking mode");
    scope.spawn(move || {
        let mut streams: Vec<(TcpStream, SocketAddr)> = Vec::new();
        let mut buffer = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            let mut idle = true;
            if let Ok((stream, from)) = listener.accept() {
                stream.set_nonblocking(true).expect("non-blocking mode");
                streams.push((stream, from));
                idle = false;
            }
            for (stream, from) in &mut streams {
                // Each byte is a request.
                if let Ok(1) = stream.read(&mut buffer[..1]) {
                    let _ = stream.write_all(format!("{at} {from}\n").as_bytes());
                    idle = false;
                }
            }
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{at} {from}\n").as_bytes(), from);
                idle = false;
            }
            if idle {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

/// Sends a request and returns who responded, and the client that the responder saw.
pub fn request(stream: &mut (impl Read + Write)) -> (IpAddr, SocketAddr) {
    stream.write_all(b"?").expect("send a request");
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a response");
        line.extend(byte);
    }
    parse(&line)
}

pub fn parse(line: &[u8]) -> (IpAddr, SocketAddr) {
    let line = std::str::from_utf8(line).expect("text");
    let (who, from) = line.trim().split_once(' ').expect("two words");
    (who.parse().expect("an address"), from.parse().expect("an address and a port"))
}

pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// A connected UDP socket: it receives from `to` only.
pub fn udp_socket(to: SocketAddr) -> UdpSocket {
    udp_socket_from(0, to)
}

fn udp_socket_from(port: u16, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind");
    socket.connect(to).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

/// As [`request`], by a datagram from a new socket.
pub fn request_by_udp(to: SocketAddr) -> (IpAddr, SocketAddr) {
    request_by_udp_from(0, to)
}

/// As [`request_by_udp`], from this port.
pub fn request_by_udp_from(port: u16, to: SocketAddr) -> (IpAddr, SocketAddr) {
    let socket = udp_socket_from(port, to);
    socket.send(b"?").expect("send a request");
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("a response");
    parse(&buffer[..length])
}

/// Stops the threads of a test when dropped, also if the test fails.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
