//! The private pair of loopback sockets between chitchat's codec and the sealed transport.
//!
//! Only chitchat's own UDP socket can encode and decode its messages. It therefore gets a partner of ours (`tap`) on
//! loopback: what chitchat sends comes out of the tap to be sealed, and what was opened goes in through the tap to be
//! decoded.
//!
//! The two sockets are connected to each other, so the kernel drops what any other process of this machine sends to
//! them: chitchat's parser must not be reachable around the seal. chitchat does not hand out its socket's descriptor;
//! it is found by its address, which no other socket of this process has.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::RawFd,
    time::Duration,
};

use chitchat::{
    ChitchatEnvelope, ChitchatMessage,
    transport::{RecvOutcome, Socket, Transport, UdpTransport},
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrIn, connect, getsockname, recv},
};
use tokio::net::UdpSocket;

use crate::wire::MAX_DATAGRAM_BYTES;

/// Loopback delivers before `send` returns; a second without the datagram means that it was dropped.
const LOOPBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// chitchat's `BadCluster` message, the shortest there is: magic number, protocol version 0, type 3. It is sent
/// behind every message as a mark: when it comes out of the codec, the message before it has come out too, or could
/// not be parsed. A peer's own `BadCluster` contains nothing that the fleet in the seal does not, and is not passed
/// on, so the mark is unambiguous.
const MARK: [u8; 4] = [0x53, 0xb0, 0, 3];

/// Whether a message is a `BadCluster`, of either protocol version.
pub(crate) fn is_mark(message: &[u8]) -> bool {
    message.len() == MARK.len() && message[..2] == MARK[..2] && message[3] == MARK[3]
}

/// The pair of sockets. One per run of the chitchat task.
pub(crate) struct Relay {
    codec: Box<dyn Socket>,
    tap: UdpSocket,
    tap_address: SocketAddr,
    stage: Stage,
    buffer: Box<[u8; MAX_DATAGRAM_BYTES]>,
}

/// The progress of the message in hand; kept across cancellation, so that the message is neither lost nor confused
/// with the next one.
enum Stage {
    Idle,
    Send(Vec<u8>),
    Mark,
    Parse { parsed: bool },
}

/// The result of parsing a message.
pub(crate) enum Parsed {
    /// The message.
    Message(RecvOutcome),
    /// The bytes were no message.
    Unparsable,
    /// No message is in hand (any more).
    Nothing,
}

impl Relay {
    /// Opens and connects the pair.
    pub async fn open() -> io::Result<Self> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tap = UdpSocket::bind(loopback).await?;
        let codec = UdpTransport.open(private_loopback()?).await.map_err(io::Error::other)?;
        let (tap_address, codec_address) = (tap.local_addr()?, codec.local_addr().map_err(io::Error::other)?);
        tap.connect(codec_address).await?;
        let descriptor = find_socket(codec_address)?;
        connect(descriptor, &to_nix(tap_address)?)?;
        discard_queued(descriptor)?;
        let mut relay =
            Self { codec, tap, tap_address, stage: Stage::Mark, buffer: Box::new([0; MAX_DATAGRAM_BYTES]) };
        // A mark through the codec proves that loopback is up.
        match tokio::time::timeout(LOOPBACK_TIMEOUT, relay.parse()).await {
            Ok(Ok(_)) => Ok(relay),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "loopback does not deliver")),
        }
    }

    /// Encodes a message of chitchat's.
    pub async fn encode(&mut self, envelope: ChitchatEnvelope) -> anyhow::Result<&[u8]> {
        self.codec.send(self.tap_address, envelope).await?;
        let received = tokio::time::timeout(LOOPBACK_TIMEOUT, self.tap.recv(&mut self.buffer[..])).await;
        let length = received.map_err(|_| anyhow::anyhow!("loopback lost a message"))??;
        Ok(&self.buffer[..length])
    }

    /// Takes the bytes of a message in hand; [`Relay::parse`] is then called until `Nothing`.
    pub fn take(&mut self, message: Vec<u8>) {
        debug_assert!(matches!(self.stage, Stage::Idle), "one message at a time");
        self.stage = Stage::Send(message);
    }

    /// Advances the message in hand by one step. May be cancelled at any time and called again.
    pub async fn parse(&mut self) -> io::Result<Parsed> {
        loop {
            match &self.stage {
                Stage::Idle => return Ok(Parsed::Nothing),
                Stage::Send(message) => {
                    self.tap.send(message).await?;
                    self.stage = Stage::Mark;
                }
                Stage::Mark => {
                    self.tap.send(&MARK).await?;
                    self.stage = Stage::Parse { parsed: false };
                }
                Stage::Parse { parsed } => {
                    let parsed = *parsed;
                    let outcome = self.codec.recv().await.map_err(io::Error::other)?;
                    if outcome.envelope.message == ChitchatMessage::BadCluster {
                        self.stage = Stage::Idle;
                        return Ok(if parsed { Parsed::Nothing } else { Parsed::Unparsable });
                    }
                    self.stage = Stage::Parse { parsed: true };
                    return Ok(Parsed::Message(outcome));
                }
            }
        }
    }
}

fn to_nix(address: SocketAddr) -> io::Result<SockaddrIn> {
    match address {
        SocketAddr::V4(address) => Ok(address.into()),
        SocketAddr::V6(_) => Err(io::Error::other("the relay is on IPv4 loopback")),
    }
}

/// A loopback address that no other socket of this process has: all of 127.0.0.0/8 is local, and these 24 bits are
/// random.
fn private_loopback() -> io::Result<SocketAddr> {
    let mut bits = [0_u8; 3];
    getrandom::fill(&mut bits).map_err(io::Error::other)?;
    Ok(SocketAddr::from((Ipv4Addr::new(127, bits[0] | 1, bits[1], bits[2] | 1), 0)))
}

/// The descriptor of this process's socket that is bound to an address.
fn find_socket(address: SocketAddr) -> io::Result<RawFd> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(descriptor) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // Descriptors that are no IPv4 socket, or were closed meanwhile, return an error.
        let bound = getsockname::<SockaddrIn>(descriptor);
        if bound.is_ok_and(|bound| SocketAddr::V4(SocketAddrV4::from(bound)) == address) {
            return Ok(descriptor);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "chitchat's socket is not among our descriptors"))
}

/// Drops what was sent between binding and connecting.
fn discard_queued(descriptor: RawFd) -> io::Result<()> {
    let mut scratch = [0; 1];
    loop {
        match recv(descriptor, &mut scratch, MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a minimal SYN of protocol version 0: no nodes, cluster `c`.
    fn syn() -> Vec<u8> {
        vec![0x53, 0xb0, 0, 0, 0, 0, 1, 0, b'c']
    }

    async fn parse_all(relay: &mut Relay, message: Vec<u8>) -> (usize, usize) {
        let (mut messages, mut unparsable) = (0, 0);
        relay.take(message);
        loop {
            match relay.parse().await.unwrap() {
                Parsed::Message(_) => messages += 1,
                Parsed::Unparsable => unparsable += 1,
                Parsed::Nothing => return (messages, unparsable),
            }
        }
    }

    #[tokio::test]
    async fn relay_passes_messages_and_survives_junk() {
        let mut relay = Relay::open().await.unwrap();
        for _ in 0..3 {
            assert_eq!(parse_all(&mut relay, syn()).await, (1, 0));
            assert_eq!(parse_all(&mut relay, b"junk".to_vec()).await, (0, 1));
            assert_eq!(parse_all(&mut relay, vec![]).await, (0, 1));
            assert_eq!(parse_all(&mut relay, vec![7; MAX_DATAGRAM_BYTES]).await, (0, 1));
        }
    }

    #[tokio::test]
    async fn relay_ignores_other_local_senders() {
        let mut relay = Relay::open().await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for address in [relay.codec.local_addr().unwrap(), relay.tap_address] {
            // The kernel may report the ICMP error of an earlier send.
            for _ in 0..3 {
                let _ = stranger.send_to(&syn(), address).await;
            }
        }
        assert_eq!(parse_all(&mut relay, b"junk".to_vec()).await, (0, 1), "no message but ours");
        assert!(relay.tap.try_recv(&mut [0; 16]).is_err(), "nothing at the tap");
    }

    #[tokio::test]
    async fn relay_cancellation_loses_nothing() {
        let mut relay = Relay::open().await.unwrap();
        relay.take(syn());
        let mut messages = 0;
        loop {
            // Polls once, then drops the future, as chitchat's `select!` does.
            tokio::select! {
                biased;
                parsed = relay.parse() => match parsed.unwrap() {
                    Parsed::Message(_) => messages += 1,
                    Parsed::Nothing => break,
                    Parsed::Unparsable => panic!("a SYN is parsable"),
                },
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(messages, 1);
    }
}
