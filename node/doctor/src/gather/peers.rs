//! Whether the other nodes answer through the overlay, and what their clocks say: pings and timestamp requests
//! (RFC 792) to their gateways, which leave by `warren_host` and by nothing else.

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

/// Where the tunnel begins on a node, as `datapath-linux` names it.
pub(crate) const HOST_DEVICE: &str = "warren_host";
/// Whoever has not answered is asked again so often: the first packet to a node may wait for its neighbour entry,
/// and one may be lost.
const ROUNDS: u32 = 3;
/// How long a round waits for answers: across continents they take a third of it.
const ROUND: Duration = Duration::from_secs(1);
/// How long to wait for one answer before the round's end is looked at.
const TICK: Duration = Duration::from_millis(50);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const TIMESTAMP_REQUEST: u8 = 13;
const TIMESTAMP_REPLY: u8 = 14;
/// Type, code, checksum, identifier, sequence number; originate, receive and transmit time of a timestamp.
const MESSAGE_BYTES: usize = 20;
const IP_HEADER_BYTES: usize = 20;
/// The longest packet of IP, and so of an answer.
const MAX_PACKET_BYTES: usize = 65_535;
/// What a ping is for, as its sequence number.
const SMALL: u16 = 1;
const FULL: u16 = 2;

/// What came back from one address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Whether it answered a ping.
    pub(crate) ping: bool,
    /// Whether it answered one that is as long as endpoints' packets may be.
    pub(crate) full_size: bool,
    /// How far its clock is ahead of ours; `None` if it did not say. Whole days do not show.
    pub(crate) clock_ahead_ms: Option<i64>,
}

impl Heard {
    const fn is_complete(&self) -> bool {
        self.ping && self.full_size && self.clock_ahead_ms.is_some()
    }
}

/// Asks each address until it has answered, [`ROUNDS`] seconds at the most. Takes that long in vain where some
/// are silent; blocks the thread. `device`: by which all of it must go; else as the node's routes say. `mtu_bytes` is the
/// longest packet of endpoints, IP header and all.
///
/// # Errors
/// When the process may not send such packets (`CAP_NET_RAW`), or there is no `warren_host`.
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
    // Not UDP, but sends and receives to and from addresses likewise.
    let socket = UdpSocket::from(raw);
    socket.set_read_timeout(Some(TICK))?;
    // Tells our answers from those to others who ping: the socket gets all.
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
            // A send that fails is an answer that does not come.
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
                        note(one, &packet[..length], identifier, now_ms());
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

/// `bytes`: at least [`MESSAGE_BYTES`].
fn request(kind: u8, identifier: u16, sequence: u16, sent_ms: u32, bytes: usize) -> Vec<u8> {
    let mut message = vec![0; bytes];
    message[0] = kind;
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message[8..12].copy_from_slice(&sent_ms.to_be_bytes());
    // Only zeros follow, which change no sum. Ten words: the carry of one fold fits.
    let sum = sum(&message[..MESSAGE_BYTES]);
    message[2..4].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    message
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

/// Takes in one packet, IP header first, that came from the address.
fn note(heard: &mut Heard, packet: &[u8], identifier: u16, now_ms: u32) {
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

/// How far a clock is ahead that showed `theirs` half-way between our `sent` and `received`, all in milliseconds
/// since midnight. `None` if it counts otherwise (the highest bit, RFC 792).
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
    fn a_clock_is_compared_half_way_and_over_midnight() {
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
        note(&mut heard, &packet, 7, 1_010);
        heard
    }

    #[test]
    fn our_answers_are_told_from_others() {
        let nothing = Heard::default();
        assert_eq!(heard_after(ECHO_REPLY, 7, SMALL), Heard { ping: true, ..nothing });
        assert_eq!(heard_after(ECHO_REPLY, 7, FULL), Heard { full_size: true, ..nothing });
        assert_eq!(heard_after(TIMESTAMP_REPLY, 7, 0), Heard { clock_ahead_ms: Some(2_000), ..nothing });
        assert_eq!(heard_after(ECHO_REPLY, 8, SMALL), nothing);
        assert_eq!(heard_after(ECHO_REQUEST, 7, SMALL), nothing);
        for cut in [&[][..], &[0x4f], &[0x45; 20], &[0x45; 25]] {
            let mut heard = Heard::default();
            note(&mut heard, cut, 0x4545, 0);
            assert_eq!(heard, Heard::default());
        }
    }

    #[test]
    fn a_request_has_the_checksum_that_stacks_want() {
        for (kind, sequence, bytes) in [(TIMESTAMP_REQUEST, 0, MESSAGE_BYTES), (ECHO_REQUEST, FULL, 8_930)] {
            let message = request(kind, 0xfedc, sequence, 86_399_999, bytes);
            assert_eq!(message.len(), bytes);
            let sum = sum(&message);
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }

    #[test]
    fn nobody_to_ask_needs_no_permission() {
        assert_eq!(ask(&[], None, 1_450).unwrap(), BTreeMap::new());
    }
}
