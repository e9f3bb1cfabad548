//! Services at the socket: whose network namespaces there are, and what sockets were translated from.
//!
//! Written by the programs, but for the namespaces. What user space owes them: a namespace is there as long as its
//! endpoint is. What they owe user space: an entry of a socket is written **before** the backend is looked at for the
//! last time, so that whoever takes a backend away and reads the sockets after finds all that go there.

use crate::{V4, abi_bytes};

/// Sockets that go to services at the same time, those that are connected once, others once or twice. A node with
/// more of them forgets the least used.
pub const MAX_SOCKETS: u32 = 65_536;

/// Whose a network namespace is ([`NamespaceEntry::kind`]).
pub mod namespace_kind {
    /// The node's own.
    pub const NODE: u32 = 1;
    /// A local endpoint's.
    pub const ENDPOINT: u32 = 2;
}

/// A network namespace whose sockets are translated; its key is the kernel's cookie of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceEntry {
    /// [`namespace_kind`].
    pub kind: u32,
    /// The endpoint's number; 0 for the node's own.
    pub endpoint: u32,
    /// Inode of the namespace, by which user space finds it again.
    pub inode: u32,
    /// The endpoint's address; zero for the node's own.
    pub address_v4: V4,
}

/// What is known of a socket ([`SocketKey::kind`]).
pub mod socket_kind {
    /// Under the backend that it goes to: the frontend that its owner named.
    pub const BACKEND: u8 = 0;
    /// Under the frontend that its owner names with each datagram: the backend that they go to.
    pub const FRONTEND: u8 = 1;
}

/// A socket and one of those whom it speaks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey<A> {
    /// The kernel's cookie of the socket; never used again.
    pub cookie: u64,
    /// The other's address.
    pub address: A,
    /// Its port, network byte order.
    pub port_be: [u8; 2],
    /// [`socket_kind`].
    pub kind: u8,
    /// Zero.
    pub pad: u8,
}

/// Who that is to the socket's owner, or to the network.
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
