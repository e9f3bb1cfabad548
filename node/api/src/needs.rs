//! The capabilities that the agent needs. The agent checks them at its start, and `warren doctor` before.

/// A capability (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// The number in `linux/capability.h`: the bit in `CapEff` of `/proc/self/status`.
    pub bit: u32,
    /// The name.
    pub name: &'static str,
    /// What the agent needs the capability for.
    pub purpose: &'static str,
}

/// All capabilities that the agent needs.
pub const CAPABILITIES: [Capability; 3] = [
    Capability { bit: 12, name: "CAP_NET_ADMIN", purpose: "devices and routes" },
    Capability {
        bit: 21,
        name: "CAP_SYS_ADMIN",
        purpose: "network namespaces of endpoints and pinned objects",
    },
    Capability { bit: 39, name: "CAP_BPF", purpose: "programs and maps" },
];

impl Capability {
    /// The capabilities that a process with this `CapEff` lacks.
    pub fn missing(effective: u64) -> impl Iterator<Item = Self> {
        CAPABILITIES.into_iter().filter(move |capability| effective & (1 << capability.bit) == 0)
    }
}
