//! Numbered packets at a steady rate: each arrives, or is lost, late, or duplicated.

use std::{
    collections::VecDeque,
    io,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use super::{report::Cause, running::Shared};

/// The time after which a packet counts as lost.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(3);
/// The time after which a packet counts as late: far above the delays of a busy machine.
pub(super) const LATE_AFTER: Duration = Duration::from_millis(500);
/// Bytes that a socket may hold: three seconds of packets at one a millisecond.
pub(super) const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Bytes of a packet's payload: the probe's cookie and the packet's number.
pub(super) const PAYLOAD_BYTES: usize = 16;

/// How packets are sent and received. No method blocks.
pub(super) trait Carrier: Send {
    /// Sends a packet.
    fn send(&self, payload: &[u8; PAYLOAD_BYTES]) -> io::Result<()>;
    /// Takes the next packet that has arrived; `None` if it is not one of ours.
    fn receive(&self) -> io::Result<Option<[u8; PAYLOAD_BYTES]>>;
    /// Readable when a packet has arrived.
    fn arrivals(&self) -> BorrowedFd<'_>;
}

/// Sends until the probe is stopped, then waits for what is under way.
pub(super) fn run(shared: &Shared, carrier: &impl Carrier, interval: Duration) -> Result<()> {
    let cookie = rand::random::<u64>();
    let mut flight = Flight::default();
    let mut next = Instant::now();
    loop {
        // Received packets are taken first: a packet is not lost because this thread was late.
        drain(shared, carrier, cookie, &mut flight)?;
        let now = Instant::now();
        for (number, sent) in flight.give_up(now) {
            shared.log().trouble(Cause::Lost, sent, sent, || format!("number {number}"));
        }
        if shared.stopped() {
            if flight.is_empty() {
                return Ok(());
            }
            next = now + interval.max(Duration::from_millis(10));
        } else if now >= next {
            let number = flight.send(now);
            let mut payload = [0; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&cookie.to_be_bytes());
            payload[8..].copy_from_slice(&number.to_be_bytes());
            let sent = carrier.send(&payload);
            let mut log = shared.log();
            log.sent(1);
            log.pause(now - next);
            if let Err(error) = sent {
                flight.take(number);
                log.trouble(Cause::Unsent, now, now, || format!("number {number}: {error}"));
            }
            next = (next + interval).max(now);
        }
        let rest = next.saturating_duration_since(Instant::now());
        let mut descriptors = [PollFd::new(carrier.arrivals(), PollFlags::POLLIN)];
        match ppoll(&mut descriptors, Some(TimeSpec::from_duration(rest)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for a packet"),
        }
    }
}

fn drain(shared: &Shared, carrier: &impl Carrier, cookie: u64, flight: &mut Flight) -> Result<()> {
    loop {
        let payload = match carrier.receive() {
            Ok(Some(payload)) => payload,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // An ICMP error of an earlier packet, which is lost and counted as such.
            Err(error) if is_icmp_error(&error) => continue,
            Err(error) => return Err(error).context("receive a packet"),
        };
        let word = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("8 bytes are 8"));
        if word(0) != cookie {
            continue;
        }
        let (now, number) = (Instant::now(), word(8));
        let mut log = shared.log();
        match flight.take(number) {
            Arrival::First(sent) => {
                log.arrived(1);
                log.latency(now - sent);
                if now - sent > LATE_AFTER {
                    log.trouble(Cause::Late, sent, now, || format!("number {number}"));
                }
            }
            Arrival::Again => log.trouble(Cause::Duplicate, now, now, || format!("number {number}")),
            Arrival::GivenUp => {
                log.trouble(Cause::Late, now, now, || format!("number {number}, given up before"));
            }
        }
    }
}

fn is_icmp_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

/// How a received number is classified.
#[derive(Debug, PartialEq, Eq)]
enum Arrival {
    First(Instant),
    Again,
    GivenUp,
}

/// The packets under way: their times of sending, by number.
#[derive(Debug, Default)]
struct Flight {
    /// The number of the first packet that is kept.
    first: u64,
    sent: VecDeque<(Instant, bool)>,
}

impl Flight {
    fn send(&mut self, now: Instant) -> u64 {
        self.sent.push_back((now, false));
        self.first + self.sent.len() as u64 - 1
    }

    fn take(&mut self, number: u64) -> Arrival {
        let Some(index) = number.checked_sub(self.first) else { return Arrival::GivenUp };
        match self.sent.get_mut(index as usize) {
            Some((sent, arrived @ false)) => {
                *arrived = true;
                Arrival::First(*sent)
            }
            _ => Arrival::Again,
        }
    }

    /// Forgets the packets that are old; returns those of them that have not arrived.
    fn give_up(&mut self, now: Instant) -> Vec<(u64, Instant)> {
        let mut lost = Vec::new();
        while let Some((sent, arrived)) = self.sent.front().copied() {
            if now < sent + LOST_AFTER {
                break;
            }
            if !arrived {
                lost.push((self.first, sent));
            }
            self.sent.pop_front();
            self.first += 1;
        }
        lost
    }

    fn is_empty(&self) -> bool {
        self.sent.iter().all(|(_, arrived)| *arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_counts_only_missing_packets_as_lost() {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let mut flight = Flight::default();
        assert_eq!([0, 1, 2, 3].map(|ms| flight.send(at(ms))), [0, 1, 2, 3]);
        assert_eq!(flight.take(1), Arrival::First(at(1)));
        assert_eq!(flight.take(1), Arrival::Again);
        let late = at(2) + LOST_AFTER;
        assert_eq!(flight.give_up(late), [(0, at(0)), (2, at(2))]);
        assert_eq!(flight.take(2), Arrival::GivenUp);
        assert!(!flight.is_empty());
        assert_eq!(flight.take(3), Arrival::First(at(3)));
        assert!(flight.is_empty());
        assert_eq!(flight.give_up(late + LOST_AFTER), []);
    }
}
