//! ICMP echo to another node's own address in the pod network. That node's kernel replies, whether its agent runs or not.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::{net::UdpSocket, time::interval};

/// The pause between two requests. A request may be lost, or wait for a neighbour entry.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Type, code, checksum, and what a reply repeats: identifier, sequence number, data.
const MESSAGE_BYTES: usize = 16;
const IP_HEADER_BYTES: usize = 20;

/// Repeats the request until a reply comes.
///
/// # Errors
/// When the process may not send such packets (`CAP_NET_RAW`), or has no socket left.
pub(super) async fn until_reply(address: IpAddr) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
    // A raw socket; tokio's type for UDP sends and receives on it in the same way.
    let socket = UdpSocket::from_std(StdSocket::from(raw))?;
    // The socket then receives from this address only.
    socket.connect(SocketAddr::new(address, 0)).await?;
    let token = token();
    let request = request(token);
    let mut again = interval(AGAIN_AFTER);
    let mut packet = [0; 128];
    loop {
        tokio::select! {
            _ = again.tick() => {
                // A request that cannot be sent gets no reply.
                drop(socket.send(&request).await);
            }
            received = socket.recv(&mut packet) => {
                // An ICMP error for a request is no reply either.
                if received.is_ok_and(|length| is_reply(&packet[..length], token)) {
                    return Ok(());
                }
            }
        }
    }
}

/// Distinguishes this probe's replies from those to other processes of this machine.
fn token() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    u64::from(std::process::id()) << 32 | COUNT.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff
}

fn request(token: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[0] = ECHO_REQUEST;
    message[8..].copy_from_slice(&token.to_be_bytes());
    // RFC 1071. With eight words one fold of the carry is enough.
    let sum: u32 =
        message.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!folded as u16).to_be_bytes());
    message
}

/// Whether a packet, with its IP header, is the reply to the request with this token.
fn is_reply(packet: &[u8], token: u64) -> bool {
    let header = packet.first().map_or(IP_HEADER_BYTES, |first| usize::from(first & 0x0f) * 4);
    let message = packet.get(header..).unwrap_or_default();
    message.first() == Some(&ECHO_REPLY) && message.get(8..MESSAGE_BYTES) == Some(&token.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_reply_counts_for_its_own_request_only() {
        let sent = request(0x1234_5678_9abc_def0);
        let check = |kind: u8, token: u64, length: usize, expected: bool| {
            let mut packet = vec![0x45; IP_HEADER_BYTES];
            packet.extend(sent);
            packet[IP_HEADER_BYTES] = kind;
            assert_eq!(is_reply(&packet[..length], token), expected, "{kind} {token:x} {length}");
        };
        check(ECHO_REPLY, 0x1234_5678_9abc_def0, 36, true);
        check(ECHO_REQUEST, 0x1234_5678_9abc_def0, 36, false);
        check(ECHO_REPLY, 0x1234_5678_9abc_def1, 36, false);
        for length in [0, 1, 20, 21, 35] {
            check(ECHO_REPLY, 0x1234_5678_9abc_def0, length, false);
        }
    }

    #[test]
    fn echo_request_has_a_valid_checksum() {
        let sum = |bytes: &[u8]| -> u32 {
            let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
            let sum: u32 = words.sum();
            (sum & 0xffff) + (sum >> 16)
        };
        for token in [0, 1, u64::MAX, 0x8000_ffff_ffff_fffe] {
            assert_eq!(sum(&request(token)), 0xffff, "{token:x}");
        }
    }
}
