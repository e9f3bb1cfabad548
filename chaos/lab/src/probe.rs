//! Probes: is the other side there, and does it get what was sent?

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{endpoint::Endpoint, process};

/// Bytes sent at a time: what a TCP super-packet holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long either side of a transfer waits for the other's next byte before it gives up.
const STALL_LIMIT: Duration = Duration::from_secs(20);

/// Pings an address from a namespace, `count` times, 20 ms apart.
///
/// # Errors
/// When one answer is missing.
pub fn ping(namespace: &str, address: IpAddr, count: u32) -> Result<String> {
    let count_text = count.to_string();
    let text = process::run(
        namespace,
        "ping",
        &["-n", "-c", &count_text, "-i", "0.02", "-W", "2", &address.to_string()],
    )?;
    if !text.contains(&format!("{count} received")) {
        bail!("ping {address} from {namespace} lost packets:\n{text}");
    }
    Ok(text)
}

/// What one side of a transfer saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransferReport {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
    /// Seconds from the first byte to the last.
    pub seconds: f64,
}

/// Waits for one connection, reads it to its end and says what came.
///
/// # Errors
/// When nobody connects or sends for [`STALL_LIMIT`].
pub fn tcp_serve(listen: SocketAddr, mut ready: impl Write) -> Result<TransferReport> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    writeln!(ready, "ready {}", listener.local_addr()?)?;
    ready.flush()?;
    listener.set_nonblocking(true)?;
    let (mut stream, _) = crate::wait::until("a connection", STALL_LIMIT, || Ok(listener.accept()?))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    let start = Instant::now();
    loop {
        match stream.read(&mut chunk).context("receive")? {
            0 => break,
            length => {
                hash.update(&chunk[..length]);
                bytes += length as u64;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    // The sender waits for this byte: only then has everything arrived.
    stream.write_all(b".").context("acknowledge")?;
    Ok(TransferReport { bytes, sha256: hex::encode(hash.finalize()), seconds })
}

/// Sends pseudo-random bytes (by seed) and says what was sent.
///
/// # Errors
/// When the other side does not answer, or stalls for [`STALL_LIMIT`].
pub fn tcp_send(to: SocketAddr, bytes: u64, seed: u64) -> Result<TransferReport> {
    let mut stream =
        TcpStream::connect_timeout(&to, STALL_LIMIT).with_context(|| format!("connect to {to}"))?;
    stream.set_write_timeout(Some(STALL_LIMIT))?;
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    let start = Instant::now();
    while left > 0 {
        let length = left.min(CHUNK_BYTES as u64) as usize;
        random.fill_bytes(&mut chunk[..length]);
        hash.update(&chunk[..length]);
        stream.write_all(&chunk[..length]).context("send")?;
        left -= length as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).context("end the stream")?;
    stream.read_exact(&mut [0]).context("wait until everything has arrived")?;
    Ok(TransferReport { bytes, sha256: hex::encode(hash.finalize()), seconds: start.elapsed().as_secs_f64() })
}

/// Moves bytes over TCP from one endpoint to another by two processes of this program; both sides' checksums
/// must be equal.
///
/// `program`: `warren-lab` itself, which has both sides as hidden commands.
///
/// # Errors
/// When a side fails or the checksums differ.
pub fn transfer(
    program: &std::path::Path,
    from: &Endpoint,
    to: &Endpoint,
    bytes: u64,
    seed: u64,
) -> Result<TransferReport> {
    let mut server = Command::new(program);
    server.args(["tcp-serve", &format!("{}:0", to.address)]).stdin(Stdio::null()).stdout(Stdio::piped());
    process::enter(&mut server, &to.namespace, None)?;
    let mut server = KillOnDrop(server.spawn().context("start tcp-serve")?);
    let mut output = std::io::BufReader::new(server.0.stdout.take().context("tcp-serve has no output")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line)?;
    let address = line.trim().strip_prefix("ready ").with_context(|| format!("tcp-serve said {line:?}"))?;
    let program_text = program.to_str().context("the program's path is no text")?;
    let sent = process::run(
        &from.namespace,
        program_text,
        &["tcp-send", address, "--bytes", &bytes.to_string(), "--seed", &seed.to_string()],
    )?;
    let mut received = String::new();
    output.read_to_string(&mut received)?;
    server.0.wait()?;
    let sent: TransferReport = serde_json::from_str(&sent).context("decode what tcp-send said")?;
    let received: TransferReport = serde_json::from_str(&received).context("decode what tcp-serve said")?;
    if sent.bytes != received.bytes || sent.sha256 != received.sha256 {
        bail!("sent {sent:?}, received {received:?}");
    }
    Ok(sent)
}

/// A child that does not outlive whoever waits for it.
struct KillOnDrop(std::process::Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only when the child has ended and was waited for.
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}
