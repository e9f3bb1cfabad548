//! What a service costs its clients at the socket and by packets, beside the backend itself, in one run: connections, and
//! a question and its answer, from an endpoint to another of the same node. `cargo bench -p datapath-linux --bench sockets`.
//! Compare within a run only.

#[expect(dead_code, reason = "tests need more of it")]
#[path = "../tests/system/cgroup.rs"]
mod cgroup;
#[expect(dead_code, reason = "tests need more of it")]
#[path = "../tests/system/stage.rs"]
mod stage;

use std::{
    fs,
    hint::black_box,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    thread,
    time::Instant,
};

use datapath_linux::{LinuxConfig, SocketConfig};
use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, Entry, Frontend, FrontendKind, FrontendValue, Op,
    Protocol, ServiceId, ServiceMode, ServiceValue,
};

use crate::{
    cgroup::Cgroup,
    stage::{Namespace, Stage, base_ops, endpoint, endpoint_ops, must},
};

const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 201, 0, 1), 80);
const BACKEND: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 1, 12), 8080);
/// Somewhere else: nobody reads what comes there.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 77, 1, 12), 9090);

/// All ways one after the other, so often: what the machine does meanwhile concerns them alike.
const ROUNDS: usize = 40;
const CONNECTIONS: usize = 25;
const QUESTIONS: usize = 200;

/// A way to the backend: its name, the address, and whether the process is in the cgroup.
const WAYS: [(&str, (Ipv4Addr, u16), bool); 4] = [
    ("backend", BACKEND, false),
    ("backend, with programs", BACKEND, true),
    ("service, at the socket", VIP, true),
    ("service, by packets", VIP, false),
];

fn main() {
    let Some(stage) = Stage::new() else { return };
    let Some(cgroup) = Cgroup::new(&stage.node.name) else { return };
    let [client, server] = ["client", "server"].map(Namespace::new);
    let sockets = SocketConfig { cgroup: cgroup.path.clone(), ends_tcp: false };
    let config = LinuxConfig { sockets: Some(sockets), ..stage.config() };
    stage.block_on(async || {
        let mut datapath = stage.open_with(config).await;
        let mut ops = base_ops(1);
        for (id, workload) in [(1, &client), (2, &server)] {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &value));
        }
        ops.extend([(1, Protocol::Tcp), (2, Protocol::Udp)].into_iter().flat_map(service));
        must(&mut datapath, ops).await;
    });
    answer(&server);
    let home = home();
    let mut times: [[Vec<u64>; 5]; WAYS.len()] = Default::default();
    client.enter(|| {
        for _ in 0..ROUNDS {
            for ((_, to, inside), times) in WAYS.iter().zip(&mut times) {
                enter(if *inside { &cgroup.path } else { &home });
                round(*to, times);
            }
        }
    });
    enter(&home);
    println!(
        "{:<24} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "medians, ns", "connect", "TCP", "UDP", "UDP sendto", "elsewhere"
    );
    for ((name, ..), times) in WAYS.iter().zip(&mut times) {
        let [connect, tcp, udp, sendto, elsewhere] = times.each_mut().map(|times| median(times));
        println!("{name:<24} {connect:>12} {tcp:>12} {udp:>12} {sendto:>12} {elsewhere:>12}");
    }
}

fn median(times: &mut [u64]) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

fn service((id, protocol): (u32, Protocol)) -> Vec<Op> {
    let backend = BackendValue {
        service: ServiceId(id),
        address: BACKEND.0.into(),
        port: BACKEND.1,
        weight: 1,
        state: BackendState::Active,
    };
    let value = ServiceValue {
        algorithm: Algorithm::Maglev,
        affinity_seconds: 0,
        mode: ServiceMode::Snat,
        source_ranges: Vec::new(),
        members: vec![BackendId(id)],
    };
    vec![
        Op::Put(Entry::Backend(BackendId(id), backend)),
        Op::Put(Entry::Service(ServiceId(id), value)),
        Op::Put(Entry::Frontend(
            Frontend { address: VIP.0.into(), port: VIP.1, protocol },
            FrontendValue { service: ServiceId(id), kind: FrontendKind::Virtual },
        )),
    ]
}

/// Sends back what comes, until the process ends.
fn answer(server: &Namespace) {
    let (listener, datagrams, deaf) = server.enter(|| {
        let listener = TcpListener::bind(BACKEND).expect("listen");
        let datagrams = UdpSocket::bind(BACKEND).expect("bind");
        (listener, datagrams, UdpSocket::bind(ELSEWHERE).expect("bind"))
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&buffer[..length], from);
        }
        drop(deaf);
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_nodelay(true);
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                let _ = stream.write_all(&byte);
            }
        }
    });
}

/// The cgroup that this process was started in.
fn home() -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").expect("read");
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2");
    datapath_linux::cgroup_root().expect("it is mounted").join(own)
}

fn enter(cgroup: &std::path::Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").expect("enter the cgroup");
}

/// One round of a way: the times, in nanoseconds, of each kind.
fn round(to: (Ipv4Addr, u16), [connect, tcp, udp, sendto, elsewhere]: &mut [Vec<u64>; 5]) {
    let mut byte = *b"?";
    for _ in 0..CONNECTIONS {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(to).expect("connect");
        connect.push(nanoseconds(begin));
        // The server takes one connection after the other.
        stream.write_all(&byte).expect("ask");
        stream.read_exact(&mut byte).expect("an answer");
    }
    let mut stream = TcpStream::connect(to).expect("connect");
    stream.set_nodelay(true).expect("no delay");
    for _ in 0..QUESTIONS {
        let begin = Instant::now();
        stream.write_all(&byte).expect("ask");
        stream.read_exact(&mut byte).expect("an answer");
        tcp.push(nanoseconds(begin));
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    for _ in 0..QUESTIONS {
        let begin = Instant::now();
        socket.send_to(&byte, to).expect("ask");
        black_box(socket.recv_from(&mut byte).expect("an answer"));
        sendto.push(nanoseconds(begin));
    }
    for _ in 0..QUESTIONS {
        let begin = Instant::now();
        socket.send_to(&byte, ELSEWHERE).expect("send");
        elsewhere.push(nanoseconds(begin));
    }
    socket.connect(to).expect("connect");
    for _ in 0..QUESTIONS {
        let begin = Instant::now();
        socket.send(&byte).expect("ask");
        socket.recv(&mut byte).expect("an answer");
        udp.push(nanoseconds(begin));
    }
}

fn nanoseconds(begin: Instant) -> u64 {
    begin.elapsed().as_nanos() as u64
}
