//! The kernel programs' object, carried inside this crate, and what it holds.

use aya::{
    include_bytes_aligned,
    programs::{ProgramError, SchedClassifier, Xdp},
};
use nix::sys::signal::{SigSet, SigmaskHow};

/// The ELF object that `build.rs` made; aligned as the parser wants it.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("WARREN_BPF_OBJECT"));

/// A classifier in [`OBJECT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    /// Host side of an endpoint's device, ingress: what a workload sends.
    FromEndpoint,
    /// Host side of an endpoint's device, egress: what the node's stack delivers to a workload.
    ToEndpoint,
    /// `warren_vxlan`, ingress: what other nodes send.
    FromTunnel,
    /// `warren_host`, egress: what the node sends to endpoints.
    FromHost,
    /// The underlay interface, ingress: answers to masqueraded flows, endpoints' packets without a tunnel.
    FromNetdev,
    /// The underlay interface, egress: masquerade of what the stack has routed.
    ToNetdev,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::FromEndpoint,
        Self::ToEndpoint,
        Self::FromTunnel,
        Self::FromHost,
        Self::FromNetdev,
        Self::ToNetdev,
    ];

    /// Its name in the object, and that of its pin.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromEndpoint => "from_endpoint",
            Self::ToEndpoint => "to_endpoint",
            Self::FromTunnel => "from_tunnel",
            Self::FromHost => "from_host",
            Self::FromNetdev => "from_netdev",
            Self::ToNetdev => "to_netdev",
        }
    }
}

/// The name of the XDP program in [`OBJECT`].
pub const XDP_PROGRAM: &str = "xdp_entry";

/// A program at sockets in [`OBJECT`]; it belongs to a cgroup and not to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SocketProgram {
    /// connect(2): a frontend becomes a backend.
    Connect,
    /// sendmsg(2) with an address: the same, for one datagram.
    SendMsg,
    /// recvmsg(2): the backend becomes the frontend.
    RecvMsg,
    /// getpeername(2): the same.
    GetPeerName,
    /// The end of a socket: nothing more is known of it.
    Release,
}

impl SocketProgram {
    /// All of them, in the order in which they are attached: who can connect must be able to ask.
    pub const ALL: [Self; 5] =
        [Self::GetPeerName, Self::RecvMsg, Self::Release, Self::Connect, Self::SendMsg];

    /// Its name in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "sock_connect4",
            Self::SendMsg => "sock_sendmsg4",
            Self::RecvMsg => "sock_recvmsg4",
            Self::GetPeerName => "sock_getpeername4",
            Self::Release => "sock_release",
        }
    }
}

/// Loads a program into the kernel. Its verifier gives up with `EAGAIN` when the thread has a signal waiting (the end of a
/// child, for one): until it is done signals wait, or go to another thread.
///
/// # Errors
/// As [`SchedClassifier::load`].
pub fn load(classifier: &mut SchedClassifier) -> Result<(), ProgramError> {
    undisturbed(|| classifier.load())
}

/// As [`load`], for a program at sockets.
///
/// # Errors
/// As [`CgroupSockAddr::load`].
pub fn load_socket(program: &mut aya::programs::Program) -> Result<(), ProgramError> {
    undisturbed(|| match program {
        aya::programs::Program::CgroupSockAddr(program) => program.load(),
        aya::programs::Program::CgroupSock(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    })
}

/// As [`load`], for the XDP program.
///
/// # Errors
/// As [`Xdp::load`].
pub fn load_xdp(program: &mut Xdp) -> Result<(), ProgramError> {
    undisturbed(|| program.load())
}

fn undisturbed<T>(load: impl FnOnce() -> T) -> T {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let result = load();
    if let Ok(before) = before {
        // Of a mask that was this thread's own nothing can be wrong.
        let _restored = before.thread_set_mask();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_lists_are_what_the_object_holds() {
        let object = aya_obj::Object::parse(OBJECT).expect("the object parses");

        let mut programs: Vec<_> = object.programs.keys().map(String::as_str).collect();
        let at_sockets = SocketProgram::ALL.iter().map(|program| program.name());
        let mut expected: Vec<_> = Program::ALL
            .iter()
            .map(|program| program.name())
            .chain(at_sockets)
            .chain([XDP_PROGRAM])
            .collect();
        programs.sort_unstable();
        expected.sort_unstable();
        assert_eq!(programs, expected);
    }
}
