//! Ending sockets of others, by sock_diag(7): the owner gets ECONNABORTED from its next call.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `linux/sock_diag.h`
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// States of `net/tcp_states.h` that a socket is connected in; of UDP it is the first.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// `struct nlmsghdr`, `struct inet_diag_req_v2`, `struct inet_diag_msg`, `struct inet_diag_sockid`.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 8 + ID_BYTES;
const ID_BYTES: usize = 48;
/// Of the socket's id in an answer, and of the cookie in that.
const ID_AT: usize = HEADER_BYTES + 4;
const COOKIE_AT: usize = 40;

/// As large as the kernel makes the parts of a dump.
const BUFFER_BYTES: usize = 64 << 10;

pub(crate) type SocketId = [u8; ID_BYTES];

/// Ends the connected IPv4 sockets of a protocol that have one of these cookies, in the calling thread's network
/// namespace. Says how many there were. Doing it again finds none.
///
/// # Errors
/// `ENOENT` or `EOPNOTSUPP` where the kernel has no such facility (`CONFIG_INET_UDP_DIAG`, `CONFIG_INET_DIAG_DESTROY`).
pub(crate) fn end(protocol: u8, cookies: &HashSet<u64>) -> io::Result<usize> {
    let kernel =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut ended = 0;
    for id in find(&kernel, protocol, cookies)? {
        ask(&kernel, SOCK_DESTROY, libc::NLM_F_ACK, protocol, &id)?;
        match answers(&kernel, |_| {}) {
            Ok(()) => ended += 1,
            // Closed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// The ids of the sockets with these cookies.
fn find(kernel: &OwnedFd, protocol: u8, cookies: &HashSet<u64>) -> io::Result<Vec<SocketId>> {
    let mut found = Vec::new();
    ask(kernel, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, protocol, &[0; ID_BYTES])?;
    answers(kernel, |message| found.extend(socket_id(message).filter(|id| cookies.contains(&cookie(id)))))?;
    Ok(found)
}

/// The socket that a message is about.
pub(crate) fn socket_id(message: &[u8]) -> Option<SocketId> {
    message.get(ID_AT..ID_AT + ID_BYTES)?.try_into().ok()
}

/// Two words, the low one first, each in the machine's order.
pub(crate) fn cookie(id: &SocketId) -> u64 {
    let word = |at: usize| u64::from(u32::from_ne_bytes(id[at..at + 4].try_into().expect("four bytes")));
    word(COOKIE_AT) | word(COOKIE_AT + 4) << 32
}

fn ask(kernel: &OwnedFd, kind: u16, flags: libc::c_int, protocol: u8, id: &SocketId) -> io::Result<()> {
    let mut request = Vec::with_capacity(REQUEST_BYTES);
    request.extend((REQUEST_BYTES as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    // Sequence, and the kernel as receiver.
    request.extend([0; 8]);
    request.extend([libc::AF_INET as u8, protocol, 0, 0]);
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(id);
    send(kernel.as_raw_fd(), &request, MsgFlags::empty())?;
    Ok(())
}

/// Hands over each message of an answer, up to its end.
fn answers(kernel: &OwnedFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if part(&buffer[..length], &mut each)? {
            return Ok(());
        }
    }
}

/// Hands over each message of a part of an answer; true at the end of all.
pub(crate) fn part(mut rest: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while let Some(header) = rest.get(..HEADER_BYTES) {
        let bytes = u32::from_ne_bytes(header[..4].try_into().expect("four bytes")) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().expect("two bytes"));
        if bytes < HEADER_BYTES || bytes > rest.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (message, after) = rest.split_at(bytes);
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let error = message.get(HEADER_BYTES..HEADER_BYTES + 4).ok_or(io::ErrorKind::InvalidData)?;
                return match i32::from_ne_bytes(error.try_into().expect("four bytes")) {
                    0 => Ok(true),
                    error => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                };
            }
            _ => each(message),
        }
        rest = &after[(bytes.next_multiple_of(4) - bytes).min(after.len())..];
    }
    Ok(false)
}
