//! Ending sockets of other processes by sock_diag(7): the owner's next call fails with ECONNABORTED.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};

/// States in which a socket is connected. A connected UDP socket is in the first.
const CONNECTED: StateFlags = StateFlags::ESTABLISHED
    .union(StateFlags::SYN_SENT)
    .union(StateFlags::SYN_RECV)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::LAST_ACK)
    .union(StateFlags::CLOSING);

/// The size of the kernel's parts of a dump.
const BUFFER_BYTES: usize = 64 << 10;

/// Ends the connected IPv4 sockets of a protocol that have one of these cookies, in the calling thread's network
/// namespace, and returns their number. Repeating it finds none.
///
/// # Errors
/// `ENOENT` or `EOPNOTSUPP` where the kernel has no such facility (`CONFIG_INET_UDP_DIAG`, `CONFIG_INET_DIAG_DESTROY`).
pub(crate) fn end(protocol: u8, cookies: &HashSet<u64>) -> io::Result<usize> {
    let kernel =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut found = Vec::new();
    ask(&kernel, NLM_F_DUMP, request(protocol, SocketId::new_v4()))?;
    answers(&kernel, |id| found.extend(cookies.contains(&cookie(id)).then(|| id.clone())))?;
    let mut ended = 0;
    for id in found {
        ask(&kernel, NLM_F_ACK, SockDiagDestroy::new(request(protocol, id)))?;
        match answers(&kernel, |_| {}) {
            Ok(()) => ended += 1,
            // The owner has closed it meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

fn request(protocol: u8, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: libc::AF_INET as u8,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: CONNECTED,
        socket_id,
    })
}

/// The cookie as BPF programs know it: of its two words, the low one comes first, each in the machine's byte order.
pub(crate) fn cookie(id: &SocketId) -> u64 {
    let [a, b, c, d, e, f, g, h] = id.cookie;
    let [low, high] = [[a, b, c, d], [e, f, g, h]].map(|word| u64::from(u32::from_ne_bytes(word)));
    low | high << 32
}

fn ask<M: NetlinkSerializable + Into<NetlinkPayload<M>>>(
    kernel: &OwnedFd,
    flags: u16,
    message: M,
) -> io::Result<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    send(kernel.as_raw_fd(), &bytes, MsgFlags::empty())?;
    Ok(())
}

/// Passes the sockets of an answer to `each`, up to the answer's end.
fn answers(kernel: &OwnedFd, mut each: impl FnMut(&SocketId)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if part(&buffer[..length], &mut each)? {
            return Ok(());
        }
    }
}

/// Passes the sockets of one part of an answer to `each`. True at the end of the answer.
pub(crate) fn part(mut rest: &[u8], each: &mut impl FnMut(&SocketId)) -> io::Result<bool> {
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => {
                return if error.code.is_none() { Ok(true) } else { Err(error.to_io()) };
            }
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                each(&response.header.socket_id);
            }
            _ => {}
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(false)
}
