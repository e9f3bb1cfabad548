//! chitchat's transport over the sealed wire: every outgoing datagram is sealed, and every incoming one is opened.
//!
//! Datagrams that do not open are counted and dropped here. The network socket, the sealer's counter and the replay
//! windows outlive the chitchat task: a restart of the task keeps the port and every guarantee about nonces and
//! replay. The latter two also outlive a change of the node's address.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use chitchat::{
    ChitchatEnvelope,
    transport::{RecvOutcome, SendOutcome, Socket, Transport},
};
use tokio::net::UdpSocket;
use tracing::debug;

use crate::{
    keyring::Keyring,
    relay::{Parsed, Relay, is_mark},
    stats::{Counters, count, count_bytes},
    wire::{MAX_DATAGRAM_BYTES, Opener, Sealer},
};

/// What all runs of the chitchat task share.
pub(crate) struct Link {
    /// Replaced with each change of this node's address.
    pub socket: Mutex<Arc<UdpSocket>>,
    pub sealer: Mutex<Sealer>,
    pub opener: Mutex<Opener>,
    pub keyring: Mutex<Arc<Keyring>>,
    pub counters: Counters,
}

/// A panic elsewhere (a member can make chitchat's task panic) leaves these values consistent: our code does not
/// panic while it holds them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time in ms since the epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Link {
    fn open(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        count(&self.counters.datagrams_in);
        count_bytes(&self.counters.bytes_in, datagram.len());
        let keyring = lock(&self.keyring).clone();
        match lock(&self.opener).open(&keyring, now_ms(), datagram) {
            Ok(message) => {
                let message = message.filter(|message| !is_mark(message))?;
                count(&self.counters.opened);
                Some(message)
            }
            Err(reason) => {
                self.counters.refuse(reason);
                None
            }
        }
    }

    fn seal(&self, message: &[u8]) -> Vec<Vec<u8>> {
        let keyring = lock(&self.keyring).clone();
        let now_ms = now_ms();
        let datagrams = lock(&self.sealer).seal(&keyring, now_ms, message);
        let mut opener = lock(&self.opener);
        for datagram in &datagrams {
            opener.remember_own(now_ms, datagram);
        }
        datagrams
    }

    fn socket(&self) -> Arc<UdpSocket> {
        lock(&self.socket).clone()
    }

    /// Sends a datagram, if the kernel accepts it. chitchat could not do anything about an unreachable peer: the
    /// failure is counted, and the round continues.
    async fn send(&self, to: SocketAddr, datagram: &[u8]) {
        match self.socket().send_to(datagram, to).await {
            Ok(bytes) => {
                count(&self.counters.datagrams_out);
                count_bytes(&self.counters.bytes_out, bytes);
            }
            Err(error) => {
                count(&self.counters.send_failed);
                debug!(%to, %error, "gossip datagram not sent");
            }
        }
    }
}

/// Opens [`SealedSocket`]s over one link.
pub(crate) struct SealedTransport {
    link: Arc<Link>,
    /// The relay that was tested at the start.
    first: Mutex<Option<Relay>>,
}

impl SealedTransport {
    pub fn new(link: Arc<Link>, first: Relay) -> Self {
        Self { link, first: Mutex::new(Some(first)) }
    }
}

#[async_trait]
impl Transport for SealedTransport {
    /// `listen_addr` is not used: the link's socket is already bound.
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let first = lock(&self.first).take();
        let relay = match first {
            Some(relay) => relay,
            None => Relay::open().await?,
        };
        Ok(Box::new(SealedSocket {
            link: self.link.clone(),
            relay,
            peer: None,
            failure: None,
            buffer: vec![0; MAX_DATAGRAM_BYTES + 1].into_boxed_slice(),
        }))
    }
}

struct SealedSocket {
    link: Arc<Link>,
    relay: Relay,
    /// The sender of the message in the relay.
    peer: Option<SocketAddr>,
    /// Why chitchat's task must be restarted. chitchat ignores the result of `send`.
    failure: Option<anyhow::Error>,
    /// One byte longer than the longest datagram, so that nothing is truncated silently.
    buffer: Box<[u8]>,
}

#[async_trait]
impl Socket for SealedSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.link.socket().local_addr()?)
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        // A former incarnation of this node counts as one that may come back, and chitchat contacts it.
        if to == self.local_addr()? {
            return Ok(SendOutcome { num_bytes_sent: 0 });
        }
        // A message that does not fit a datagram is a digest of too many nodes: no handshake could begin any more,
        // and gossip would be silent without an error. A restart forgets these nodes.
        let message = match self.relay.encode(envelope).await {
            Ok(message) => message,
            Err(error) => {
                let text = format!("{error:#}");
                self.failure = Some(error.context("gossip message cannot be sent"));
                anyhow::bail!(text);
            }
        };
        let num_bytes_sent = message.len();
        for datagram in self.link.seal(message) {
            self.link.send(to, &datagram).await;
        }
        Ok(SendOutcome { num_bytes_sent })
    }

    /// Cancelled by chitchat whenever a round or a command is due: the message in hand stays in the relay, and is
    /// finished before the next datagram is read.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if let Some(peer) = self.peer {
                match self.relay.parse().await? {
                    Parsed::Message(outcome) => return Ok(RecvOutcome { from_addr: peer, ..outcome }),
                    Parsed::Unparsable => count(&self.link.counters.unparsed),
                    Parsed::Nothing => self.peer = None,
                }
                continue;
            }
            let (length, peer) = match self.link.socket().recv_from(&mut self.buffer).await {
                Ok(received) => received,
                Err(error) if is_transient(&error) => {
                    debug!(%error, "gossip socket");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            // There is no await between receiving and taking: cancellation cannot come between.
            if let Some(message) = self.link.open(&self.buffer[..length]) {
                self.relay.take(message);
                self.peer = Some(peer);
            }
        }
    }
}

/// Network errors that say nothing about the socket.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        OutOfMemory,
    };
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | OutOfMemory
    )
}
