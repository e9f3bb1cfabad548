//! Socket translation on the real kernel: what clients connect to, what they see, and when their sockets are closed.

mod lifetime;
mod programs;
mod translation;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use datapath_abi::{Direction, DropReason, map_name};
use datapath_linux::{CounterKind, Datapath, LinuxConfig, SocketConfig};
use datapath_plan::{Entry, Frontend, FrontendKind, FrontendValue, Op, Protocol, ServiceId};
use nix::sys::socket::SockaddrIn;

use crate::{
    cgroup::Cgroup,
    services::echo::{PATIENCE, parse},
    stage::{Namespace, Stage, base_ops, endpoint, endpoint_ops, must},
};

const NODE_PORT: u16 = 30_080;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A node with a client and two backends, and the cgroup of its processes.
struct Topology {
    cgroup: Cgroup,
    stage: Stage,
    client: Namespace,
    one: Namespace,
    two: Namespace,
}

impl Topology {
    fn new() -> Option<Self> {
        let stage = Stage::new()?;
        let cgroup = Cgroup::new(&stage.node.name)?;
        let [client, one, two] = ["client", "one", "two"].map(Namespace::new);
        Some(Self { cgroup, stage, client, one, two })
    }

    fn config(&self) -> LinuxConfig {
        let sockets = SocketConfig { cgroup: self.cgroup.path.clone(), ends_tcp: false };
        LinuxConfig { sockets: Some(sockets), ..self.stage.config() }
    }

    /// The node with its endpoints.
    async fn open(&self) -> Datapath {
        let mut datapath = self.stage.open_with(self.config()).await;
        assert!(are_attached(&datapath).await, "the programs are attached");
        let mut ops = base_ops(1);
        for (id, workload) in [(1, &self.client), (2, &self.one), (3, &self.two)] {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &value));
        }
        must(&mut datapath, ops).await;
        datapath
    }

    fn socket(&self, from: &Namespace, kind: libc::c_int) -> OwnedFd {
        self.cgroup.socket(from, kind)
    }

    /// A TCP connection.
    fn tcp(&self, from: &Namespace, to: (Ipv4Addr, u16)) -> nix::Result<TcpStream> {
        let socket = self.socket(from, libc::SOCK_STREAM);
        connect(&socket, to)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Ok(stream)
    }

    fn udp(&self, from: &Namespace) -> UdpSocket {
        let socket = UdpSocket::from(self.socket(from, libc::SOCK_DGRAM));
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket
    }
}

fn connect(socket: &impl AsRawFd, (address, port): (Ipv4Addr, u16)) -> nix::Result<()> {
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))
}

/// Whether all socket programs are attached.
async fn are_attached(datapath: &Datapath) -> bool {
    let programs = datapath.programs().await.expect("programs");
    let socket_programs: Vec<_> = programs.iter().filter(|program| program.hook == "cgroup").collect();
    !socket_programs.is_empty() && socket_programs.iter().all(|program| program.devices.len() == 1)
}

/// Adds a node port to the services of `both_protocols`.
fn node_port() -> Vec<Op> {
    let frontend = |protocol, service| {
        Op::Put(Entry::Frontend(
            Frontend { address: Ipv4Addr::UNSPECIFIED.into(), port: NODE_PORT, protocol },
            FrontendValue { service: ServiceId(service), kind: FrontendKind::NodePort },
        ))
    };
    vec![frontend(Protocol::Tcp, 1), frontend(Protocol::Udp, 2)]
}

/// The remote addresses of a namespace's sockets, from /proc/net.
fn remotes(namespace: &Namespace, protocol: &str) -> BTreeSet<SocketAddr> {
    let text =
        namespace.enter(|| fs::read_to_string(format!("/proc/thread-self/net/{protocol}"))).expect("read");
    let remote = |line: &str| {
        let (address, port) = line.split_whitespace().nth(2)?.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
        Some(SocketAddr::new(IpAddr::from(address), u16::from_str_radix(port, 16).ok()?))
    };
    text.lines().skip(1).filter_map(remote).filter(|remote| remote.port() != 0).collect()
}

/// Sends a request by a datagram; returns the response, and the source that the client sees.
fn exchange(socket: &UdpSocket, to: (Ipv4Addr, u16)) -> ((IpAddr, SocketAddr), SocketAddr) {
    let mut buffer = [0; 64];
    socket.send_to(b"?", to).expect("send a request");
    let (length, from) = socket.recv_from(&mut buffer).expect("a response");
    (parse(&buffer[..length]), from)
}

fn refusals(datapath: &Datapath) -> u64 {
    let kind = CounterKind::Dropped(DropReason::NoBackend);
    datapath.counters().expect("counters")[&(kind, Direction::Egress)].packets
}

fn entries(datapath: &Datapath) -> usize {
    datapath.map_dump(map_name::SOCKETS_V4).expect("dump").len()
}
