//! Probes that end when their function returns.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use sha2::{Digest, Sha256};

use crate::{Endpoint, namespace, process, wait};

/// Bytes sent at a time: the size of a TCP super-packet.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long either side of a transfer waits for the next byte before it gives up.
const STALL_LIMIT: Duration = Duration::from_secs(20);

/// Pings an address from a namespace, `count` times, 20 ms apart.
///
/// # Errors
/// When one reply is missing.
pub fn ping(namespace: &str, address: IpAddr, count: u32) -> Result<()> {
    let count_text = count.to_string();
    let text = process::run(
        namespace,
        "ping",
        &["-n", "-c", &count_text, "-i", "0.02", "-W", "2", &address.to_string()],
    )?;
    if !text.contains(&format!(" {count} received")) {
        bail!("ping {address} from {namespace} lost packets:\n{text}");
    }
    Ok(())
}

/// Sends one datagram from inside a namespace.
///
/// # Errors
/// When the kernel refuses to send it; whether it arrives is not checked.
pub fn send_datagram(namespace: &str, to: SocketAddr, payload: &[u8]) -> Result<()> {
    let socket = namespace::inside(namespace, || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    socket.send_to(payload, to).with_context(|| format!("send to {to} from {namespace}"))?;
    Ok(())
}

/// A transfer whose checksum was equal at both ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Transfer {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
    /// From the first byte sent until the receiver has confirmed the last one.
    pub time: Duration,
}

/// Transfers pseudo-random bytes (by seed) over TCP from one endpoint to another; both ends' checksums must be equal.
///
/// # Errors
/// When the connection fails, a side stalls for [`STALL_LIMIT`], or the checksums differ.
pub fn transfer(from: &Endpoint, to: &Endpoint, bytes: u64, seed: u64) -> Result<Transfer> {
    let listener = namespace::inside(&to.namespace, || {
        TcpListener::bind((to.address, 0)).with_context(|| format!("listen on {}", to.address))
    })?;
    let address = listener.local_addr()?;
    let stream = namespace::inside(&from.namespace, || {
        TcpStream::connect_timeout(&address, STALL_LIMIT)
            .with_context(|| format!("connect to {address} from {}", from.address))
    })?;
    let accepted = accept(&listener)?;
    let start = Instant::now();
    let (sent, received) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(accepted));
        let sent = send(stream, bytes, seed);
        (sent, receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let time = start.elapsed();
    let ((arrived, received), sent) = (received?, sent?);
    if arrived != bytes || sent != received {
        bail!("sent {bytes} bytes with sha256 {sent}, received {arrived} with {received}");
    }
    Ok(Transfer { bytes, sha256: sent, time })
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let (stream, _) = wait::until("a connection", STALL_LIMIT, || Ok(listener.accept()?))?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Reads a stream to its end; returns its length and checksum.
fn receive(mut stream: TcpStream) -> Result<(u64, String)> {
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        match stream.read(&mut chunk).context("receive")? {
            0 => break,
            length => {
                hash.update(&chunk[..length]);
                bytes += length as u64;
            }
        }
    }
    // The sender waits for this byte: only then has everything arrived.
    stream.write_all(b".").context("acknowledge")?;
    Ok((bytes, hex::encode(hash.finalize())))
}

/// Sends bytes and waits until the receiver has them; returns their checksum.
fn send(mut stream: TcpStream, bytes: u64, seed: u64) -> Result<String> {
    stream.set_write_timeout(Some(STALL_LIMIT))?;
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK_BYTES as u64) as usize;
        random.fill_bytes(&mut chunk[..length]);
        hash.update(&chunk[..length]);
        stream.write_all(&chunk[..length]).context("send")?;
        left -= length as u64;
    }
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    stream.read_exact(&mut [0]).context("wait until everything has arrived")?;
    Ok(hex::encode(hash.finalize()))
}
