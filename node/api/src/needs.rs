//! What an agent needs of the process that it runs in: it says so when it refuses to start, and the doctor before.

/// A capability (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Its number, as `linux/capability.h` has it: the bit in `CapEff` of `/proc/self/status`.
    pub bit: u32,
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

/// All that the agent cannot do without.
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
    /// Those that a process lacks by its `CapEff`.
    pub fn missing(effective: u64) -> impl Iterator<Item = Self> {
        CAPABILITIES.into_iter().filter(move |capability| effective & (1 << capability.bit) == 0)
    }
}
