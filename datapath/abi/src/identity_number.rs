//! The identities that the programs must tell apart. The same numbers as in the crate `identity`, which is not
//! for kernels; `datapath-packet` has the test that they agree.

/// Not known. Never means host.
pub const UNKNOWN: u32 = 0;
/// This node.
pub const HOST: u32 = 1;
/// Whatever is outside of the fleet.
pub const WORLD: u32 = 2;
/// A workload without an identity of its own.
pub const UNMANAGED: u32 = 3;
/// Health probes.
pub const HEALTH: u32 = 4;
/// Another node of the fleet.
pub const REMOTE_NODE: u32 = 6;
/// The first number that stands for a set of labels.
pub const FLEET_MIN: u32 = 256;
/// The last one: the VNI has 24 bits.
pub const FLEET_MAX: u32 = (1 << 24) - 1;
