//! Numbered UDP datagrams in one direction: the effect of a one-way fault shows separately.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    running::Running,
    sequence::{self, Carrier, PAYLOAD_BYTES, SOCKET_BUFFER_BYTES},
};
use crate::{Endpoint, namespace};

/// Datagrams from one endpoint to another.
#[derive(Debug, Clone)]
pub struct Datagrams {
    /// The sender.
    pub from: Endpoint,
    /// The receiver.
    pub to: Endpoint,
    /// Time between two datagrams; one that could not be sent in time, because the machine is busy, is left out.
    pub interval: Duration,
}

impl Datagrams {
    /// Starts the probe.
    ///
    /// # Errors
    /// When a namespace does not exist, or its kernel provides no socket.
    pub fn start(&self) -> Result<Running> {
        let receiver = namespace::inside(&self.to.namespace, || {
            let socket = UdpSocket::bind((self.to.address, 0))?;
            setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
            Ok(socket)
        })
        .with_context(|| format!("listen for datagrams on {}", self.to.address))?;
        let sender = namespace::inside(&self.from.namespace, || {
            let socket = UdpSocket::bind((self.from.address, 0))?;
            socket.connect(receiver.local_addr()?)?;
            Ok(socket)
        })
        .with_context(|| format!("make a socket for datagrams on {}", self.from.address))?;
        receiver.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        let interval = self.interval;
        Running::start("datagrams", move |shared| {
            sequence::run(shared, &OneWay { sender, receiver }, interval)
        })
    }
}

struct OneWay {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Carrier for OneWay {
    fn send(&self, payload: &[u8; PAYLOAD_BYTES]) -> io::Result<()> {
        match self.sender.send(payload) {
            // The error of an earlier datagram, reported once; this one is still to be sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.sender.send(payload),
            result => result,
        }
        .map(drop)
    }

    fn receive(&self) -> io::Result<Option<[u8; PAYLOAD_BYTES]>> {
        let mut payload = [0; PAYLOAD_BYTES];
        let length = self.receiver.recv(&mut payload)?;
        Ok((length == PAYLOAD_BYTES).then_some(payload))
    }

    fn arrivals(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}
