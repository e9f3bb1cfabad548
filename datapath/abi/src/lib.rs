//! The bytes that kernel programs and user space share: map keys and values, events, names, sizes.
//!
//! Every type is `#[repr(C)]` with explicit padding and asserts on its size; none holds a `bool`, `usize`,
//! `Option` or enum. Addresses and ports are in network byte order, all else in the machine's. Types that
//! hold addresses are generic over the family ([`V4`], [`V6`]), with a map for each family.
//!
//! Invariant: whoever changes a layout here raises [`ABI_VERSION`]. Builds read one another's maps by the names of
//! fields (decision 0015): a field that changes its meaning changes its name, zero in a new field means "as before",
//! and a key that changes is a map of another name.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
#![no_std]

mod counter;
mod event;
mod flow;
mod map;
mod service;
mod socket;

pub mod identity_number;

pub use counter::{COUNTED_BY_XDP, COUNTER_SLOTS, Counter, Direction, DropReason, counter_slot};
pub use event::{Event, EventKind};
pub use flow::{
    FlowAction, FlowEntry, FlowKey, FragmentKey, FragmentPorts, PolicyVerdict, SourceKind, flow_flags,
};
pub use map::*;
pub use service::*;
pub use socket::*;

/// Version of all layouts in this crate, in the configuration map and beside the pins.
pub const ABI_VERSION: u32 = 4 + cfg!(feature = "next-layout") as u32;

/// An IPv4 address in network byte order.
pub type V4 = [u8; 4];
/// An IPv6 address in network byte order.
pub type V6 = [u8; 16];
/// An Ethernet address.
pub type MacBytes = [u8; 6];

/// A type whose bytes may be copied between kernel and user space.
///
/// # Safety
/// `#[repr(C)]`, `Copy`, no padding bytes but explicit ones, every bit pattern valid.
pub unsafe trait AbiBytes: Copy + 'static {}

macro_rules! abi_bytes {
    ($($type:ty = $size:expr),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: `#[repr(C)]`, integers and byte arrays only; the size assert above together with the
        // explicit padding fields leaves no implicit padding.
        unsafe impl $crate::AbiBytes for $type {}
    )+};
}
pub(crate) use abi_bytes;
