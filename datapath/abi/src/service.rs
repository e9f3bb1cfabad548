//! Services: where they are reached, their settings, their tables of slots, and what stands behind them.
//!
//! What user space owes the programs:
//! - A backend's entry is written before the table that names it, a table before the service's entry that names it, that
//!   before the frontend's. Things go in the opposite order.
//! - A table is never changed: another one is made beside it, with a number of its own, and the service's entry switches
//!   from one to the other by one word ([`ServiceEntry::table`]).
//! - The epoch of a **backend's** address is raised after its entry has gone or has become another's: its flows carry the
//!   shards of client and backend. That of a frontend's address after the frontend came: flows that went to it before are
//!   no service's.

use crate::{V4, abi_bytes};

/// Service ports, number 0 (none) included: several times the services of a large fleet (10,000).
pub const MAX_SERVICES: u32 = 65_536;
/// Members of all service ports, number 0 (none) included.
pub const MAX_BACKENDS: u32 = 262_144;
/// Addresses and ports at which services are reached.
pub const MAX_FRONTENDS: u32 = 131_072;
/// Blocks of all tables: 29 million slots.
pub const MAX_SLOT_BLOCKS: u32 = 262_144;
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

/// Where a frontend leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendEntry {
    /// The service port's number, not 0.
    pub service: u32,
    /// [`frontend_kind`].
    pub kind: u32,
}

/// What a frontend's address is.
pub mod frontend_kind {
    /// Of a service pool.
    pub const VIRTUAL: u32 = 0;
    /// Of somebody else's network.
    pub const EXTERNAL: u32 = 1;
    /// A port of every node.
    pub const NODE_PORT: u32 = 2;
    /// A port of the node of its one backend.
    pub const HOST_PORT: u32 = 3;
}

/// Bits of [`ServiceEntry::flags`].
pub mod service_flags {
    /// There is such a service port.
    pub const PRESENT: u32 = 1 << 0;
    /// Its table is Maglev's.
    pub const MAGLEV: u32 = 1 << 1;
    /// Backends answer clients outside themselves.
    pub const DSR: u32 = 1 << 2;
    /// Clients outside get this node's own backends.
    pub const LOCAL: u32 = 1 << 3;
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

/// Bits of [`BackendEntry::flags`].
pub mod backend_flags {
    /// On the way out.
    pub const TERMINATING: u8 = 1 << 0;
    /// Not well.
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

abi_bytes! {
    FrontendKey<V4> = 8,
    FrontendEntry = 8,
    ServiceEntry = 32,
    SlotsKey = 8,
    SlotBlock = 448,
    BackendEntry<V4> = 16,
}
