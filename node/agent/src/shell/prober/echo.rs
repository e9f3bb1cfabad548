//! ICMP echo to another node's own address in the pod network: its kernel answers, whether its agent runs or not.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::{net::UdpSocket, time::interval};

/// Between two requests: one of them may be lost, or wait for a neighbour entry.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Type, code, checksum, and what comes back as it was: identifier, sequence number, data.
const MESSAGE_BYTES: usize = 16;
const IP_HEADER_BYTES: usize = 20;

/// Asks again and again; ends with the first answer.
///
/// # Errors
/// When the process may not send such packets (`CAP_NET_RAW`), or has no socket left.
pub(super) async fn until_answered(address: IpAddr) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
    // Not UDP, but sends and receives to and from addresses likewise.
    let socket = UdpSocket::from_std(StdSocket::from(raw))?;
    // From nobody else it hears anything.
    socket.connect(SocketAddr::new(address, 0)).await?;
    let token = token();
    let request = request(token);
    let mut again = interval(AGAIN_AFTER);
    let mut packet = [0; 128];
    loop {
        tokio::select! {
            _ = again.tick() => {
                // A send that fails is an answer that does not come.
                drop(socket.send(&request).await);
            }
            received = socket.recv(&mut packet) => {
                // An ICMP error for one of our requests is no answer either.
                if received.is_ok_and(|length| is_answer(&packet[..length], token)) {
                    return Ok(());
                }
            }
        }
    }
}

/// Tells our answers from those to others on this machine who ask the same node.
fn token() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    u64::from(std::process::id()) << 32 | COUNT.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff
}

fn request(token: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[0] = ECHO_REQUEST;
    message[8..].copy_from_slice(&token.to_be_bytes());
    // RFC 1071. Eight words: the carry of one fold fits.
    let sum: u32 =
        message.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!folded as u16).to_be_bytes());
    message
}

/// Of a packet with its IP header.
fn is_answer(packet: &[u8], token: u64) -> bool {
    let header = packet.first().map_or(IP_HEADER_BYTES, |first| usize::from(first & 0x0f) * 4);
    let message = packet.get(header..).unwrap_or_default();
    message.first() == Some(&ECHO_REPLY) && message.get(8..MESSAGE_BYTES) == Some(&token.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_our_own_request_counts() {
        let sent = request(0x1234_5678_9abc_def0);
        let check = |kind: u8, token: u64, length: usize, expected: bool| {
            let mut packet = vec![0x45; IP_HEADER_BYTES];
            packet.extend(sent);
            packet[IP_HEADER_BYTES] = kind;
            assert_eq!(is_answer(&packet[..length], token), expected, "{kind} {token:x} {length}");
        };
        check(ECHO_REPLY, 0x1234_5678_9abc_def0, 36, true);
        check(ECHO_REQUEST, 0x1234_5678_9abc_def0, 36, false);
        check(ECHO_REPLY, 0x1234_5678_9abc_def1, 36, false);
        for length in [0, 1, 20, 21, 35] {
            check(ECHO_REPLY, 0x1234_5678_9abc_def0, length, false);
        }
    }

    #[test]
    fn a_request_has_the_checksum_that_stacks_want() {
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
