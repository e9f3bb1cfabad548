//! A continuous ping, with an interval down to 1 ms, that reports exactly which packets were lost and when.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};

use super::{
    running::Running,
    sequence::{self, Carrier, PAYLOAD_BYTES, SOCKET_BUFFER_BYTES},
};
use crate::namespace;

/// Echo requests from a namespace to an address.
#[derive(Debug, Clone)]
pub struct Ping {
    /// The network namespace of the sender.
    pub namespace: String,
    /// The destination.
    pub to: IpAddr,
    /// Time between two pings; one that could not be sent in time, because the machine is busy, is left out.
    pub interval: Duration,
}

impl Ping {
    /// One ping each millisecond.
    pub fn new(namespace: &str, to: IpAddr) -> Self {
        Self { namespace: namespace.to_owned(), to, interval: Duration::from_millis(1) }
    }

    /// Starts the probe.
    ///
    /// # Errors
    /// When the namespace does not exist, or its kernel provides no socket; IPv6 is not supported yet.
    pub fn start(&self) -> Result<Running> {
        let IpAddr::V4(to) = self.to else { bail!("ping {}: this probe speaks IPv4 only", self.to) };
        let socket = namespace::inside(&self.namespace, raw_socket)
            .with_context(|| format!("make a socket for pings in {}", self.namespace))?;
        let carrier = Echo { socket, to, ident: rand::random() };
        let interval = self.interval;
        Running::start("pings", move |shared| sequence::run(shared, &carrier, interval))
    }
}

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const HEADER_BYTES: usize = 8;

/// A socket that receives echo replies only.
fn raw_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
    setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
    /// `ICMP_FILTER` of <linux/icmp.h>: a bit for each unwanted type.
    const ICMP_FILTER: libc::c_int = 1;
    let unwanted: u32 = !(1 << ECHO_REPLY);
    // SAFETY: the option takes a u32, which outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_RAW,
            ICMP_FILTER,
            (&raw const unwanted).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("filter ICMP types");
    }
    Ok(socket)
}

struct Echo {
    socket: OwnedFd,
    to: Ipv4Addr,
    ident: u16,
}

impl Carrier for Echo {
    fn send(&self, payload: &[u8; PAYLOAD_BYTES]) -> io::Result<()> {
        let mut packet = [0; HEADER_BYTES + PAYLOAD_BYTES];
        packet[0] = ECHO_REQUEST;
        packet[4..6].copy_from_slice(&self.ident.to_be_bytes());
        packet[6..8].copy_from_slice(&payload[PAYLOAD_BYTES - 2..]);
        packet[HEADER_BYTES..].copy_from_slice(payload);
        let checksum = internet_checksum(&packet);
        packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(self.to, 0));
        sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Option<[u8; PAYLOAD_BYTES]>> {
        let mut packet = [0; 128];
        let length = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty())?;
        Ok(payload_of(&packet[..length], self.ident))
    }

    fn arrivals(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The payload of an echo reply to us, behind its IPv4 header.
fn payload_of(packet: &[u8], ident: u16) -> Option<[u8; PAYLOAD_BYTES]> {
    let icmp = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    let ours = icmp.len() == HEADER_BYTES + PAYLOAD_BYTES
        && icmp[0] == ECHO_REPLY
        && icmp[4..6] == ident.to_be_bytes();
    ours.then(|| icmp[HEADER_BYTES..].try_into().expect("the length was looked at"))
}

/// The Internet checksum (RFC 1071).
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| b.into())).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_equals_rfc_1071() {
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn ping_counts_only_its_own_replies() {
        let mut packet = vec![0; 20 + HEADER_BYTES + PAYLOAD_BYTES];
        packet[0] = 0x45;
        packet[24..26].copy_from_slice(&7u16.to_be_bytes());
        packet[28..].copy_from_slice(&[9; PAYLOAD_BYTES]);
        assert_eq!(payload_of(&packet, 7), Some([9; PAYLOAD_BYTES]));
        assert_eq!(payload_of(&packet, 8), None);
        assert_eq!(payload_of(&packet[..30], 7), None);
        assert_eq!(payload_of(&[], 7), None);
    }
}
