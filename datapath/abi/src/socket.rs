//! Services at the socket: network namespaces and their owners, and what sockets were translated from.
//!
//! Written by the programs, but for the namespaces. What user space owes them: a namespace is there as long as its
//! endpoint is. What they owe user space: an entry of a socket is written **before** the backend is looked at for the
//! last time, so that whoever takes a backend away and reads the sockets after finds all that go there.

use crate::{V4, abi_bytes};

/// Entries of sockets that go to services: one of a connected socket, two of an unconnected one. A node with more of them
/// forgets the least recently used.
pub const MAX_SOCKETS: u32 = 65_536;

/// Owners of network namespaces ([`NamespaceEntry::kind`]).
pub mod namespace_kind {
    /// The node's own.
    pub const NODE: u32 = 1;
    /// A local endpoint's.
    pub const ENDPOINT: u32 = 2;
}

/// A network namespace whose sockets are translated, by the kernel's cookie of the namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceEntry {
    /// [`namespace_kind`].
    pub kind: u32,
    /// The endpoint's number; 0 for the node's own.
    pub endpoint: u32,
    /// Inode of the namespace, by which user space recognises it.
    pub inode: u32,
    /// The endpoint's address; zero for the node's own.
    pub address_v4: V4,
}

/// Kinds of socket entries ([`SocketKey::kind`]).
pub mod socket_kind {
    /// By the backend that the socket goes to: the frontend that its owner named.
    pub const BACKEND: u8 = 0;
    /// By the frontend that the owner names with each datagram: the backend that the datagrams go to.
    pub const FRONTEND: u8 = 1;
}

/// A socket and a remote address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey<A> {
    /// The kernel's cookie of the socket, which is never reused.
    pub cookie: u64,
    /// The remote address.
    pub address: A,
    /// The remote port, network byte order.
    pub port_be: [u8; 2],
    /// [`socket_kind`].
    pub kind: u8,
    /// Zero.
    pub pad: u8,
}

/// The address that stands for the remote one: to the socket's owner, or to the network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketEntry<A> {
    /// Cookie of the socket's network namespace.
    pub namespace: u64,
    /// The address.
    pub address: A,
    /// The port, network byte order.
    pub port_be: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// The service port's number.
    pub service: u32,
    /// The backend's number.
    pub backend: u32,
}

abi_bytes! {
    NamespaceEntry = 16,
    SocketKey<V4> = 16,
    SocketEntry<V4> = 24,
}
