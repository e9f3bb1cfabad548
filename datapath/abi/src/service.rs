//! Services: frontends, settings, tables of slots, and backends.
//!
//! What user space owes the programs:
//! - A backend's entry is written before the table that names it, a table before the service's entry that names it, that
//!   before the frontend's. Things go in the opposite order.
//! - A table is never changed: another one is made beside it, with a number of its own, and the service's entry switches
//!   from one to the other by one word ([`ServiceEntry::table`]).
//! - The epoch of a **backend's** address is raised after its entry has gone or has become another's: its flows carry the
//!   shards of client and backend. That of a frontend's address after the frontend came: flows that went to it before are
//!   no service's.
//! - A frontend's bit in the map of ports is set as long as the frontend is there, and stays: flows that it has made may
//!   still run. A bit too many costs a lookup.
//! - Source ranges are written before the service's entry that says that there are any, and go after it.

use crate::{LpmKey, V4, abi_bytes};

/// Service ports, number 0 (none) included: several times the services of a large fleet (10,000).
pub const MAX_SERVICES: u32 = 65_536;
/// Members of all service ports, number 0 (none) included.
pub const MAX_BACKENDS: u32 = 262_144;
/// Addresses and ports at which services are reached.
pub const MAX_FRONTENDS: u32 = 131_072;
/// Blocks of all tables: 29 million slots.
pub const MAX_SLOT_BLOCKS: u32 = 262_144;
/// Prefixes of all services' source ranges.
pub const MAX_SOURCES: u32 = 65_536;
/// Affinities of clients to backends, of all services: 5 MB.
pub const MAX_AFFINITIES: u32 = 65_536;
/// Slots of a block: with its key and the kernel's own words it takes 512 bytes, which is what the kernel allocates.
pub const BLOCK_SLOTS: u32 = 112;

/// Where a service is reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey<A> {
    /// The address; all zeros: this node's, of the underlay and as gateway.
    pub address: A,
    /// The port, network byte order.
    pub port_be: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// The service port that a frontend leads to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendEntry {
    /// The service port's number, not 0.
    pub service: u32,
    /// [`frontend_kind`].
    pub kind: u32,
}

/// Kinds of frontends.
pub mod frontend_kind {
    /// Its address is a virtual IP, of a service pool.
    pub const VIRTUAL: u32 = 0;
    /// Its address belongs to somebody else's network.
    pub const EXTERNAL: u32 = 1;
    /// A port of every node.
    pub const NODE_PORT: u32 = 2;
    /// A port of the node of its one backend.
    pub const HOST_PORT: u32 = 3;
}

/// Bits of [`ServiceEntry::flags`].
pub mod service_flags {
    /// The service port exists.
    pub const PRESENT: u32 = 1 << 0;
    /// The table was computed by Maglev's algorithm.
    pub const MAGLEV: u32 = 1 << 1;
    /// Backends answer external clients themselves (direct server return).
    pub const DSR: u32 = 1 << 2;
    /// External clients must be in the source ranges.
    pub const SOURCES: u32 = 1 << 3;
}

/// A service port, by number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The number of its table (high half) and how many slots that has (low half): one word, so that programs see one
    /// table or another.
    pub table: u64,
    /// Of its table and what that was made of: for user space, to find damage.
    pub digest: u64,
    /// How long a client that is silent keeps its backend, 0: not at all.
    pub affinity_seconds: u32,
    /// [`service_flags`].
    pub flags: u32,
    /// Members, whose numbers follow the slots in the table.
    pub members: u32,
    /// Zero.
    pub pad: u32,
}

impl ServiceEntry {
    /// The number of its table, and how many slots that has.
    #[inline(always)]
    pub const fn table(&self) -> (u32, u32) {
        ((self.table >> 32) as u32, self.table as u32)
    }
}

/// Where a part of a table is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotsKey {
    /// The table's number; not used again while anything of it is left.
    pub table: u32,
    /// Which part: slots from [`BLOCK_SLOTS`] times this on.
    pub block: u32,
}

/// A part of a table: numbers of backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotBlock {
    /// Zeros behind the last.
    pub slots: [u32; BLOCK_SLOTS as usize],
}

/// In the place of a backend's number: another node, with numbers of its own, has chosen the flow's backend.
pub const BACKEND_ELSEWHERE: u32 = u32::MAX;

/// Bits of [`BackendEntry::flags`].
pub mod backend_flags {
    /// The backend gets no new flows, and will be removed.
    pub const TERMINATING: u8 = 1 << 0;
    /// The backend's health check fails, or its node is dead.
    pub const UNHEALTHY: u8 = 1 << 1;
}

/// A member of a service port, by number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendEntry<A> {
    /// The service port's number; 0: there is no such backend.
    pub service: u32,
    /// Where it is.
    pub address: A,
    /// Its port, network byte order.
    pub port_be: [u8; 2],
    /// Its part of the flows, for user space.
    pub weight: u16,
    /// [`backend_flags`]; 0: it gets new flows.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// A source range of a service, with [`crate::LpmKey`]: the bits of the service's number count as a part of the prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source<A> {
    /// The service port's number.
    pub service: u32,
    /// The client's address.
    pub address: A,
}

/// Bits of [`Source::service`] in a prefix.
pub const SOURCE_SERVICE_BITS: u32 = 32;

/// Key of an affinity: a client of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AffinityKey {
    /// The client's IPv4 address as a number.
    pub client: u64,
    /// The service port's number.
    pub service: u32,
    /// Zero.
    pub pad: u32,
}

/// Affinity of a client to a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityEntry {
    /// When the client last opened a flow, `CLOCK_MONOTONIC_COARSE`.
    pub last_seen_ns: u64,
    /// The backend's number.
    pub backend: u32,
    /// Zero.
    pub pad: u32,
}

/// Words of [`crate::map_name::SERVICE_PORTS`]: a bit for each port of TCP, UDP and SCTP.
pub const SERVICE_PORT_WORDS: u32 = 3 * 1_024;

/// Where the bit of a port is, in host byte order: the word, and the bit in it. A word that there is not for protocols
/// that have no frontends.
#[inline(always)]
pub const fn service_port_bit(protocol: u8, port: u16) -> (u32, u64) {
    let first = match protocol {
        6 => 0,
        17 => 1_024,
        132 => 2_048,
        _ => SERVICE_PORT_WORDS,
    };
    (first + (port >> 6) as u32, 1 << (port & 63))
}

abi_bytes! {
    u64 = 8,
    FrontendKey<V4> = 8,
    FrontendEntry = 8,
    ServiceEntry = 32,
    SlotsKey = 8,
    SlotBlock = 448,
    BackendEntry<V4> = 16,
    Source<V4> = 8,
    LpmKey<Source<V4>> = 12,
    AffinityKey = 16,
    AffinityEntry = 16,
}
