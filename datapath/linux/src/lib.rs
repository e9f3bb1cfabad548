//! The kernel of one node: loads and pins the programs, observes what the kernel holds, carries out plans,
//! reads flows, counters and events, and takes everything away again.
//!
//! The only crate that names aya and rtnetlink. Invariant: it decides nothing; what is wanted is decided in
//! `datapath-plan` and above, and everything here can be done twice.

mod apply;
mod bpf;
mod btf;
mod cgroup;
mod cleanup;
mod clsact;
mod config;
mod counters;
mod datapath;
mod descriptor;
mod device;
mod dump;
mod endpoint;
mod error;
mod events;
mod flows;
mod handover;
mod hook;
mod layout;
mod maps;
mod namespace;
mod netlink;
pub mod object;
mod observe;
mod pins;
mod programs;
mod route;
mod rows;
mod shown;
mod sock_diag;
mod sockets;
mod sysctl;
mod table;
mod underlay;
mod users;
mod watch;
mod xdp;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub use cgroup::cgroup_root;
pub use cleanup::{CleanupStep, cleanup};
pub use config::{
    DEFAULT_PIN_ROOT, LinuxConfig, SocketConfig, UnderlayChoice, WARREN_ROUTE_PROTOCOL, XdpConfig, XdpMode,
};
pub use counters::{Count, CounterKind, Counters};
pub use datapath::Datapath;
pub use descriptor::{Content, MAPS};
pub use device::{ENDPOINT_PREFIX, GROUP as DEVICE_GROUP, HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE};
pub use dump::{MapInfo, MapRow};
pub use error::DatapathError;
pub use events::Events;
pub use flows::{EndedFlow, Flow, FlowFilter, FlowStats, FlowTable};
pub use programs::ProgramInfo;
pub use underlay::{PassedOver, Underlay, underlay};
pub use users::HookUser;
pub use watch::{Changes, Watch};
