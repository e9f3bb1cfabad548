//! Probes other nodes on the pods' path: pings and timestamp requests (RFC 792) to their gateways, which leave by `warren_host`
//! only if the fleet has a tunnel.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt::BindToDevice,
};

/// The device of `datapath-linux` that leads to the tunnel.
pub(crate) const HOST_DEVICE: &str = "warren_host";
/// The number of probes to a node that does not answer: the first one may wait for a neighbour entry, and one may be lost.
const ROUNDS: u32 = 3;
/// The time that a round waits for answers: three times the round trip between continents.
const ROUND: Duration = Duration::from_secs(1);
/// The time between checks for the end of a round.
const TICK: Duration = Duration::from_millis(50);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const TIMESTAMP_REQUEST: u8 = 13;
const TIMESTAMP_REPLY: u8 = 14;
/// Type, code, checksum, identifier, sequence number; originate, receive and transmit time of a timestamp.
const MESSAGE_BYTES: usize = 20;
const IP_HEADER_BYTES: usize = 20;
/// The longest IP packet, and hence answer.
const MAX_PACKET_BYTES: usize = 65_535;
/// The purpose of a ping, as its sequence number.
const SMALL: u16 = 1;
const FULL: u16 = 2;

/// The answers of one address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Whether a small ping was answered.
    pub(crate) ping: bool,
    /// Whether a ping of the endpoints' MTU was answered.
    pub(crate) full_size: bool,
    /// The time of the node's clock ahead of this node's, modulo a day; `None` without an answer.
    pub(crate) clock_ahead_ms: Option<i64>,
}

impl Heard {
    const fn is_complete(&self) -> bool {
        self.ping && self.full_size && self.clock_ahead_ms.is_some()
    }
}

/// Probes each address until it has answered, for at most [`ROUNDS`] seconds. Blocks the thread. Packets leave by `device`, or
/// without one by the node's routes. `mtu_bytes` is the endpoints' MTU, IP header included.
///
/// # Errors
/// If the process lacks `CAP_NET_RAW`, or the device does not exist.
pub(crate) fn ask(
    addresses: &[Ipv4Addr],
    device: Option<&str>,
    mtu_bytes: u32,
) -> io::Result<BTreeMap<Ipv4Addr, Heard>> {
    let mut heard: BTreeMap<_, _> = addresses.iter().map(|address| (*address, Heard::default())).collect();
    if heard.is_empty() {
        return Ok(heard);
    }
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
    if let Some(device) = device {
        setsockopt(&raw.as_fd(), BindToDevice, &device.into())?;
    }
    // The socket is not UDP, but the type has the same calls to send to and receive from addresses.
    let socket = UdpSocket::from(raw);
    socket.set_read_timeout(Some(TICK))?;
    // The socket receives all ICMP messages; the identifier selects the answers to this process.
    let identifier = std::process::id() as u16;
    let full_bytes =
        (mtu_bytes as usize).clamp(IP_HEADER_BYTES + MESSAGE_BYTES, MAX_PACKET_BYTES) - IP_HEADER_BYTES;
    let small = request(ECHO_REQUEST, identifier, SMALL, 0, MESSAGE_BYTES);
    let full = request(ECHO_REQUEST, identifier, FULL, 0, full_bytes);
    let mut packet = vec![0; MAX_PACKET_BYTES];
    for _ in 0..ROUNDS {
        let end = Instant::now() + ROUND;
        for (address, heard) in &heard {
            let to = SocketAddr::from((*address, 0));
            // A failed send shows as a missing answer.
            if !heard.ping {
                drop(socket.send_to(&small, to));
            }
            if !heard.full_size {
                drop(socket.send_to(&full, to));
            }
            if heard.clock_ahead_ms.is_none() {
                drop(socket.send_to(&request(TIMESTAMP_REQUEST, identifier, 0, now_ms(), MESSAGE_BYTES), to));
            }
        }
        while Instant::now() < end && !heard.values().all(Heard::is_complete) {
            match socket.recv_from(&mut packet) {
                Ok((length, from)) => {
                    if let IpAddr::V4(address) = from.ip()
                        && let Some(one) = heard.get_mut(&address)
                    {
                        record_answer(one, &packet[..length], identifier, now_ms());
                    }
                }
                Err(error) if is_time_out(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(heard)
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Milliseconds since midnight UTC, as timestamps count.
fn now_ms() -> u32 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (wall.as_millis() % DAY_MS as u128) as u32
}

/// An ICMP message of `bytes`, at least [`MESSAGE_BYTES`].
fn request(kind: u8, identifier: u16, sequence: u16, sent_ms: u32, bytes: usize) -> Vec<u8> {
    let mut message = vec![0; bytes];
    message[0] = kind;
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message[8..12].copy_from_slice(&sent_ms.to_be_bytes());
    // Only zeros follow, which do not change the sum. The sum of ten words needs one fold of the carry.
    let sum = sum(&message[..MESSAGE_BYTES]);
    message[2..4].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    message
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

/// Records an answer from the packet of an address, which begins with the IP header.
fn record_answer(heard: &mut Heard, packet: &[u8], identifier: u16, now_ms: u32) {
    let header_bytes = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    let Some(message) = packet.get(header_bytes..) else { return };
    let word = |at: usize| Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?));
    if message.get(4..6) != Some(&identifier.to_be_bytes()) {
        return;
    }
    match message[0] {
        ECHO_REPLY if message.get(6..8) == Some(&FULL.to_be_bytes()) => heard.full_size = true,
        ECHO_REPLY => heard.ping = true,
        TIMESTAMP_REPLY => {
            if let (Some(sent_ms), Some(theirs_ms)) = (word(8), word(12)) {
                heard.clock_ahead_ms = ahead_ms(sent_ms, theirs_ms, now_ms);
            }
        }
        _ => {}
    }
}

/// The time of a clock ahead of this node's, if it showed `theirs` half-way between `sent` and `received`, all in milliseconds
/// since midnight. `None` if the highest bit says that the clock counts differently (RFC 792).
fn ahead_ms(sent: u32, theirs: u32, received: u32) -> Option<i64> {
    if theirs >> 31 == 1 {
        return None;
    }
    let [sent, theirs, received] = [sent, theirs, received].map(i64::from);
    let travelled = (received - sent).rem_euclid(DAY_MS);
    let ahead = (theirs - sent - travelled / 2).rem_euclid(DAY_MS);
    Some(if ahead > DAY_MS / 2 { ahead - DAY_MS } else { ahead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_difference_is_taken_half_way_and_over_midnight() {
        assert_eq!(ahead_ms(1_000, 1_010, 1_020), Some(0));
        assert_eq!(ahead_ms(1_000, 6_010, 1_020), Some(5_000));
        assert_eq!(ahead_ms(6_000, 1_010, 6_020), Some(-5_000));
        let last = DAY_MS as u32 - 10;
        assert_eq!(ahead_ms(last, 0, 10), Some(0));
        assert_eq!(ahead_ms(last, last - 990, 10), Some(-1_000));
        assert_eq!(ahead_ms(10, last, 10), Some(-20));
        assert_eq!(ahead_ms(1_000, 1 << 31, 1_020), None);
    }

    fn heard_after(kind: u8, identifier: u16, sequence: u16) -> Heard {
        let mut packet = vec![0x45; 20];
        let mut message = request(kind, identifier, sequence, 1_000, MESSAGE_BYTES);
        message[12..16].copy_from_slice(&3_005_u32.to_be_bytes());
        packet.extend(message);
        let mut heard = Heard::default();
        record_answer(&mut heard, &packet, 7, 1_010);
        heard
    }

    #[test]
    fn answers_to_other_processes_are_ignored() {
        let nothing = Heard::default();
        assert_eq!(heard_after(ECHO_REPLY, 7, SMALL), Heard { ping: true, ..nothing });
        assert_eq!(heard_after(ECHO_REPLY, 7, FULL), Heard { full_size: true, ..nothing });
        assert_eq!(heard_after(TIMESTAMP_REPLY, 7, 0), Heard { clock_ahead_ms: Some(2_000), ..nothing });
        assert_eq!(heard_after(ECHO_REPLY, 8, SMALL), nothing);
        assert_eq!(heard_after(ECHO_REQUEST, 7, SMALL), nothing);
        for cut in [&[][..], &[0x4f], &[0x45; 20], &[0x45; 25]] {
            let mut heard = Heard::default();
            record_answer(&mut heard, cut, 0x4545, 0);
            assert_eq!(heard, Heard::default());
        }
    }

    #[test]
    fn request_has_a_valid_checksum() {
        for (kind, sequence, bytes) in [(TIMESTAMP_REQUEST, 0, MESSAGE_BYTES), (ECHO_REQUEST, FULL, 8_930)] {
            let message = request(kind, 0xfedc, sequence, 86_399_999, bytes);
            assert_eq!(message.len(), bytes);
            let sum = sum(&message);
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }

    #[test]
    fn probing_no_address_needs_no_privilege() {
        assert_eq!(ask(&[], None, 1_450).unwrap(), BTreeMap::new());
    }
}
