//! Long-lived TCP streams that carry checked bytes both ways at a steady, small pace.

use std::{
    io,
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    task::JoinSet,
    time::{MissedTickBehavior, interval_at, timeout},
};

use super::{
    pattern::Pattern,
    report::Cause,
    running::{Running, Shared},
};
use crate::{Endpoint, namespace};

/// Time between two writes of a stream: below the shortest stall of interest. 100 streams in both directions and a 1
/// ms ping use a quarter of a CPU in a debug build, mostly to generate and check the bytes.
const TICK: Duration = Duration::from_millis(100);
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long what was sent may still take to arrive when the probe ends: TCP's back-off after a long cut.
const FINISH_LIMIT: Duration = Duration::from_secs(30);

/// TCP streams between two endpoints.
#[derive(Debug, Clone)]
pub struct Streams {
    /// The client.
    pub from: Endpoint,
    /// The server.
    pub to: Endpoint,
    /// Number of streams.
    pub count: usize,
    /// Bytes a second of each stream in each direction.
    pub pace: usize,
    /// A direction of a stream that is silent for longer has stalled.
    pub stall: Duration,
    /// Seed of the bytes.
    pub seed: u64,
}

impl Streams {
    /// 64 KB a second each; a second of silence is a stall.
    pub fn new(from: &Endpoint, to: &Endpoint, count: usize) -> Self {
        Self {
            from: from.clone(),
            to: to.clone(),
            count,
            pace: 64_000,
            stall: Duration::from_secs(1),
            seed: rand::random(),
        }
    }

    /// Connects all streams, and starts the probe.
    ///
    /// # Errors
    /// When a stream cannot be connected.
    pub fn start(&self) -> Result<Running> {
        let (from, to) = (&self.from, &self.to);
        let listener = namespace::inside(&to.namespace, || Ok(TcpListener::bind((to.address, 0))?))
            .with_context(|| format!("listen on {}", to.address))?;
        let address = listener.local_addr()?;
        // One after the other: the next accepted connection is the peer of the last connected one.
        let pairs = namespace::inside(&from.namespace, || {
            (0..self.count)
                .map(|_| {
                    let near = TcpStream::connect_timeout(&address, CONNECT_LIMIT)
                        .with_context(|| format!("connect {} to {address}", from.address))?;
                    let (far, _) = listener.accept()?;
                    for stream in [&near, &far] {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                    }
                    Ok((near, far))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let settings = self.clone();
        Running::start("bytes", move |shared| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(settings.run(shared, pairs))
        })
    }

    async fn run(&self, shared: &Shared, pairs: Vec<(TcpStream, TcpStream)>) -> Result<()> {
        let mut tasks = JoinSet::new();
        let start = tokio::time::Instant::now();
        let chunk = (self.pace * TICK.as_millis() as usize / 1_000).max(1);
        for (stream, (near, far)) in (0u64..).zip(pairs) {
            // The streams are spread over the tick, so that they do not all write at once.
            let first = start + TICK.mul_f64(stream as f64 / self.count as f64);
            let split =
                |stream: TcpStream| Ok::<_, io::Error>(tokio::net::TcpStream::from_std(stream)?.into_split());
            let ((near_read, near_write), (far_read, far_write)) = (split(near)?, split(far)?);
            for (direction, read, write) in [(0, far_read, near_write), (1, near_read, far_write)] {
                let pattern = Pattern::new(self.seed, stream, direction);
                let name = format!("stream {stream} {}", ["there", "back"][direction as usize]);
                let line = Line { shared: shared.clone(), name, stall: self.stall };
                tasks.spawn(line.clone().write(write, pattern.clone(), first, chunk));
                tasks.spawn(line.read(read, pattern));
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a stream's task")?;
        }
        Ok(())
    }
}

/// One direction of one stream.
#[derive(Clone)]
struct Line {
    shared: Shared,
    name: String,
    stall: Duration,
}

impl Line {
    /// Writes a chunk each tick until the probe is stopped, then ends the direction.
    async fn write(
        self,
        mut half: OwnedWriteHalf,
        mut pattern: Pattern,
        first: tokio::time::Instant,
        chunk: usize,
    ) {
        let mut buffer = vec![0; chunk];
        let mut ticks = interval_at(first, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut finish = None;
        while !self.shared.stopped() {
            let begin = tokio::time::Instant::now();
            let due = ticks.tick().await;
            // A write that waited for the peer has delayed this tick: that is no pause of the probe.
            self.shared.log().pause(due.max(begin).elapsed());
            pattern.fill(&mut buffer);
            let write = half.write_all(&buffer);
            if let Err(error) = until_stopped(&self.shared, &mut finish, write).await {
                self.broken(&error, pattern.offset());
                return;
            }
            self.shared.log().sent(chunk as u64);
        }
        let retransmitted = retransmissions(&half);
        self.shared.log().retransmissions(retransmitted);
        if let Err(error) = half.shutdown().await {
            self.broken(&error, pattern.offset());
        }
    }

    /// Checks what arrives until the peer ends the direction.
    async fn read(self, mut half: OwnedReadHalf, mut pattern: Pattern) {
        let mut buffer = vec![0; 64 * 1024];
        let mut last = Instant::now();
        let mut finish = None;
        loop {
            let result = until_stopped(&self.shared, &mut finish, half.read(&mut buffer)).await;
            let (now, offset) = (Instant::now(), pattern.offset());
            let silent = now - last;
            let length = match result {
                Ok(0) if self.shared.stopped() => return,
                Ok(0) => {
                    let words = || format!("{} after {offset} bytes", self.name);
                    self.shared.log().trouble(Cause::Closed, last, now, words);
                    return;
                }
                Ok(length) => length,
                Err(error) => return self.broken(&error, offset),
            };
            if silent > self.stall {
                let words = || format!("{} for {:.1} s", self.name, silent.as_secs_f64());
                self.shared.log().trouble(Cause::Stalled, last, now, words);
            }
            last = now;
            if let Err(wrong) = pattern.check(&buffer[..length]) {
                let words = || format!("{} at byte {wrong}", self.name);
                self.shared.log().trouble(Cause::Corrupt, now, now, words);
                return;
            }
            self.shared.log().arrived(length as u64);
        }
    }

    fn broken(&self, error: &io::Error, offset: u64) {
        let now = Instant::now();
        let cause = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Cause::Reset,
            io::ErrorKind::TimedOut if self.shared.stopped() => Cause::Unfinished,
            io::ErrorKind::TimedOut => Cause::TimedOut,
            io::ErrorKind::ConnectionRefused => Cause::Refused,
            _ => Cause::Closed,
        };
        let words = || format!("{} after {offset} bytes: {error}", self.name);
        self.shared.log().trouble(cause, now, now, words);
    }
}

/// Waits for a read or write; after the probe was stopped, no longer than [`FINISH_LIMIT`] in total.
async fn until_stopped<T>(
    shared: &Shared,
    finish: &mut Option<tokio::time::Instant>,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::pin!(work);
    loop {
        if let Ok(result) = timeout(TICK * 4, &mut work).await {
            return result;
        }
        if shared.stopped() {
            let limit = *finish.get_or_insert_with(|| tokio::time::Instant::now() + FINISH_LIMIT);
            if tokio::time::Instant::now() >= limit {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// The segments that this side has retransmitted.
fn retransmissions(half: &OwnedWriteHalf) -> u64 {
    let stream: &tokio::net::TcpStream = half.as_ref();
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { info.tcpi_total_retrans.into() } else { 0 }
}
