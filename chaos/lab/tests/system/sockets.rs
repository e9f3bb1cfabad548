//! Socket translation end to end: what processes of nodes and workloads see of a service, in a whole fleet.

use std::{
    fs,
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use chaos_lab::{Endpoint, ask, cgroup, process, wait};
use nix::sys::{
    signal::Signal,
    socket::{SockaddrIn, connect},
};

use crate::{
    servers::{PATIENCE, Server, answer},
    services::{MANIFEST, apply, no_differences, wait_backends},
    support::{SOON, TestLab},
};

/// A socket of a process of a node: it belongs to that node's cgroup, whichever process uses it.
fn socket(lab: &TestLab, node: &str, namespace: &str, kind: libc::c_int) -> Result<OwnedFd> {
    let mut command = Command::new("sleep");
    command.arg("60").stdin(Stdio::null());
    process::enter(&mut command, namespace, Some(&cgroup::create(lab.name(), &format!("{node}/exec"))?))?;
    // SAFETY: between fork and exec, the closure makes raw system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let made = libc::socket(libc::AF_INET, kind, 0);
            if made < 0 || libc::dup2(made, libc::STDIN_FILENO) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    // SAFETY: the calls take integers only, and the returned descriptors are owned by nobody else.
    let socket = unsafe {
        let process = OwnedFd::from_raw_fd(valid(libc::syscall(libc::SYS_pidfd_open, child.id(), 0))?);
        let taken = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), libc::STDIN_FILENO, 0);
        OwnedFd::from_raw_fd(valid(taken)?)
    };
    child.kill()?;
    child.wait()?;
    Ok(socket)
}

fn valid(answer: libc::c_long) -> Result<i32> {
    if answer < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(i32::try_from(answer)?)
}

/// A client: where its requests come from.
#[derive(Clone, Copy)]
struct From<'a> {
    lab: &'a TestLab,
    node: &'a str,
    namespace: &'a str,
}

impl From<'_> {
    /// The name in the response to a connection, and the client address that the server saw.
    fn tcp(&self, to: SocketAddrV4) -> Result<(String, IpAddr)> {
        let socket = socket(self.lab, self.node, self.namespace, libc::SOCK_STREAM)?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(to)).with_context(|| format!("connect to {to}"))?;
        let mut stream = TcpStream::from(socket);
        ensure!(stream.peer_addr()? == SocketAddr::from(to), "the peer is {}", stream.peer_addr()?);
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        answer(&text)
    }

    fn udp(&self) -> Result<UdpSocket> {
        let socket = UdpSocket::from(socket(self.lab, self.node, self.namespace, libc::SOCK_DGRAM)?);
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    fn connected(&self, to: SocketAddrV4) -> Result<UdpSocket> {
        let socket = self.udp()?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
        ensure!(socket.peer_addr()? == SocketAddr::from(to), "the peer is {}", socket.peer_addr()?);
        Ok(socket)
    }
}

/// As [`From::tcp`], by a datagram to an address or on a connected socket.
fn exchange(socket: &UdpSocket, to: SocketAddrV4, is_connected: bool) -> Result<(String, IpAddr)> {
    let sent = if is_connected { socket.send(b"who") } else { socket.send_to(b"who", to) };
    sent.context("send")?;
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer).context("receive")?;
    ensure!(from == SocketAddr::from(to), "the answer is from {from}");
    answer(std::str::from_utf8(&buffer[..length])?)
}

#[test]
fn socket_translation_serves_workloads_and_nodes() {
    let Some(lab) = TestLab::up("sockets", 2, 1) else { return };
    let backends = [("n1", "web-1"), ("n2", "web-2")].map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let client = lab.endpoint("n1", "client", "app=client");
    let _servers: Vec<Server> = backends.iter().map(Server::start).collect();
    let file = lab.name().folder().join("web.yaml");
    fs::write(&file, MANIFEST).unwrap();
    let IpAddr::V4(vip) = apply(&lab, file.to_str().unwrap()) else { panic!("an IPv4 pool") };
    for node in ["n1", "n2"] {
        wait_backends(&lab, node, 2);
    }
    let (tcp, udp) = (SocketAddrV4::new(vip, 80), SocketAddrV4::new(vip, 53));
    let machines = ["n1", "n2"].map(|node| lab.name().machine_namespace(node));
    let place = |node, namespace| From { lab: &lab, node, namespace };
    let workload = place("n1", &client.namespace);
    let places =
        [workload, place("n1", &backends[0].namespace), place("n1", &machines[0]), place("n2", &machines[1])];
    for from in &places {
        let both = |once: &dyn Fn() -> Result<(String, IpAddr)>| -> Result<()> {
            let mut seen = std::collections::BTreeSet::new();
            // The probability that one of two is missed 64 times is negligible.
            for _ in 0..64 {
                seen.insert(once()?.0);
                if seen.len() == 2 {
                    return Ok(());
                }
            }
            bail!("only {seen:?} answer")
        };
        both(&|| from.tcp(tcp)).unwrap();
        both(&|| exchange(&from.connected(udp)?, udp, true)).unwrap();
        both(&|| exchange(&from.udp()?, udp, false)).unwrap();
        let socket = from.udp().unwrap();
        let first = exchange(&socket, udp, false).unwrap();
        for _ in 0..8 {
            assert_eq!(
                exchange(&socket, udp, false).unwrap(),
                first,
                "datagrams of one socket stay together"
            );
        }
    }
    assert_eq!(workload.tcp(tcp).unwrap().1, client.address);
    // A separate process: connect(2) by the shell.
    let mut command = lab.command("n1/client", "bash").unwrap();
    let output = command.args(["-c", &format!("cat < /dev/tcp/{vip}/80")]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("web-"), "{output:?}");
    // No TCP flow went to the virtual IP.
    let (code, flows, _) = lab.warren("n1", &["map", "dump", "WARREN_FLOWS_V4"]);
    assert_eq!(code, 0);
    assert!(!flows.contains(&format!("{vip}")), "{flows}");
    let (_, doctor, _) = lab.warren("n1", &["doctor"]);
    assert!(doctor.contains("services are translated at sockets of processes in"), "{doctor}");

    // The agent is down: sockets are still translated. The next agent goes on.
    let clients = [workload, places[2]];
    let old: Vec<UdpSocket> = clients.iter().map(|from| connected_to("web-2", from, udp).unwrap()).collect();
    lab.end("n1", Signal::SIGKILL).unwrap();
    workload.tcp(tcp).unwrap();
    lab.start_agent("n1").unwrap();
    lab.wait_node_ready("n1").unwrap();
    workload.tcp(tcp).unwrap();

    // A deleted backend closes the UDP sockets that are connected to it, and no others.
    let stays: Vec<UdpSocket> =
        clients.iter().map(|from| connected_to("web-1", from, udp).unwrap()).collect();
    remove(&lab, &backends[1]);
    for socket in &old {
        let error = socket.recv(&mut [0; 16]).expect_err("it has ended");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    }
    for socket in &stays {
        assert_eq!(exchange(socket, udp, true).unwrap().0, "web-1");
    }
    for from in &clients {
        assert_eq!(from.tcp(tcp).unwrap().0, "web-1");
    }

    remove(&lab, &backends[0]);
    wait_backends(&lab, "n1", 0);
    let before = lab.drops("n1", "no-backend");
    for from in &clients {
        for error in
            [from.tcp(tcp).expect_err("no backend"), from.connected(udp).map(drop).expect_err("no backend")]
        {
            let refused = error.root_cause().downcast_ref::<nix::errno::Errno>().copied();
            assert_eq!(refused, Some(nix::errno::Errno::ECONNREFUSED), "{error:#}");
        }
    }
    assert!(lab.drops("n1", "no-backend") >= before + 4);
    lab.wait_observed_drop("n1", "no-backend", |event| event.source.address == Some(client.address));
    no_differences(&lab, "n1");
}

/// A UDP socket that is connected to this backend.
fn connected_to(backend: &str, from: &From<'_>, to: SocketAddrV4) -> Result<UdpSocket> {
    for _ in 0..64 {
        let socket = from.connected(to)?;
        if exchange(&socket, to, true)?.0 == backend {
            return Ok(socket);
        }
    }
    bail!("{backend} never answers")
}

fn remove(lab: &TestLab, backend: &Endpoint) {
    let before = ask(lab.api("n1").services()).unwrap().items[0].ports[0].backends.len();
    lab.delete_endpoint(&backend.node, &backend.name).unwrap();
    wait::until("the backend to leave n1", SOON, || {
        let listing = ask(lab.api("n1").services())?;
        ensure!(listing.items[0].ports.iter().all(|port| port.backends.len() < before), "it is there");
        ensure!(ask(lab.api("n1").status())?.apply.pending == 0, "its kernel is behind");
        Ok(())
    })
    .unwrap();
}
