//! New TCP connections at a steady rate, each with a small request and its response.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    report::Cause,
    running::{Running, Shared},
};
use crate::{Endpoint, namespace};

/// How long one connection may take, including request and response: two retransmissions of its first packet.
const LIMIT: Duration = Duration::from_secs(4);

/// New connections from one endpoint to another.
#[derive(Debug, Clone)]
pub struct Connections {
    /// The client.
    pub from: Endpoint,
    /// The server.
    pub to: Endpoint,
    /// Time between two connections.
    pub interval: Duration,
}

impl Connections {
    /// Starts the probe.
    ///
    /// # Errors
    /// When the other endpoint cannot listen.
    pub fn start(&self) -> Result<Running> {
        let to = &self.to;
        let listener = namespace::inside(&to.namespace, || Ok(TcpListener::bind((to.address, 0))?))
            .with_context(|| format!("listen on {}", to.address))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let netns = namespace::open(&self.from.namespace)?;
        let from = SocketAddr::new(self.from.address, 0);
        let pace = self.interval;
        Running::start("connections", move |shared| {
            // Every socket that this thread creates belongs to the sender's namespace; the connections that it
            // accepts are the listener's.
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(shared, listener, from, address, pace))
        })
    }
}

async fn run(
    shared: &Shared,
    listener: TcpListener,
    from: SocketAddr,
    to: SocketAddr,
    pace: Duration,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let server = tokio::spawn(async move {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream));
            }
        }
    });
    let mut under_way = JoinSet::new();
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0u64.. {
        if shared.stopped() {
            break;
        }
        let due = ticks.tick().await;
        {
            let mut log = shared.log();
            log.pause(due.elapsed());
            log.sent(1);
        }
        under_way.spawn(one(shared.clone(), number, from, to));
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    server.abort();
    Ok(())
}

/// The server's side: sends the request's number back, then waits for the client to close.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let number = stream.read_u64().await?;
    stream.write_u64(!number).await?;
    stream.read(&mut [0]).await.map(drop)
}

/// One connection, from its first packet to its response.
async fn one(shared: Shared, number: u64, from: SocketAddr, to: SocketAddr) {
    let begin = Instant::now();
    let exchange = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(from)?;
        let mut stream = socket.connect(to).await?;
        stream.write_u64(number).await?;
        stream.read_u64().await
    };
    let result = timeout(LIMIT, exchange).await;
    let end = Instant::now();
    let mut log = shared.log();
    let cause = match &result {
        Ok(Ok(answer)) if *answer == !number => {
            log.arrived(1);
            log.latency(end - begin);
            return;
        }
        Ok(Ok(_)) => Cause::Corrupt,
        Err(_) => Cause::TimedOut,
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => Cause::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Cause::Reset,
            io::ErrorKind::TimedOut => Cause::TimedOut,
            io::ErrorKind::UnexpectedEof => Cause::Closed,
            _ => Cause::Unsent,
        },
    };
    log.trouble(cause, begin, end, || match result {
        Ok(Err(error)) => format!("connection {number}: {error}"),
        _ => format!("connection {number}"),
    });
}
