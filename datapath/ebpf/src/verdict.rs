//! What becomes of a packet that is not dropped, and the one place where the kernel is told.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};

/// The verdict of a classifier.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// The packet is none of ours: other programs at the hook, and then the stack, may have it. It is not counted.
    Unspec,
    /// The packet goes on unchanged: up to the stack at ingress, out of the device at egress.
    Pass,
    /// Into the other end of this veth interface, past this node's stack. Only at ingress.
    RedirectPeer(u32),
    /// Out of this interface.
    Redirect(u32),
    /// Out of this interface, to the neighbour that the kernel's routes lead to.
    RedirectNeigh(u32),
}

const UNSPEC: u32 = 0;
const PASS: u32 = 1;
const REDIRECT_PEER: u32 = 2;
const REDIRECT: u32 = 3;
const REDIRECT_NEIGH: u32 = 4;

impl Verdict {
    /// The return code of the program. A redirection is requested of the kernel, which carries it out after the program.
    #[inline(always)]
    pub fn carry_out(self) -> i32 {
        match self {
            Self::Unspec => TC_ACT_UNSPEC,
            Self::Pass => TC_ACT_OK,
            // SAFETY: a helper without pointers.
            Self::RedirectPeer(ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
            // SAFETY: a helper without pointers.
            Self::Redirect(ifindex) => unsafe { bpf_redirect(ifindex, 0) as i32 },
            // SAFETY: without parameters the kernel looks for the next hop itself.
            Self::RedirectNeigh(ifindex) => unsafe {
                bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
            },
        }
    }

    /// The verdict as one word of the packet context.
    #[inline(always)]
    pub fn to_word(self) -> u64 {
        let (kind, ifindex) = match self {
            Self::Unspec => (UNSPEC, 0),
            Self::Pass => (PASS, 0),
            Self::RedirectPeer(ifindex) => (REDIRECT_PEER, ifindex),
            Self::Redirect(ifindex) => (REDIRECT, ifindex),
            Self::RedirectNeigh(ifindex) => (REDIRECT_NEIGH, ifindex),
        };
        u64::from(kind) << 32 | u64::from(ifindex)
    }

    /// The verdict of a word.
    #[inline(always)]
    pub fn from_word(word: u64) -> Self {
        let ifindex = word as u32;
        match (word >> 32) as u32 {
            PASS => Self::Pass,
            REDIRECT_PEER => Self::RedirectPeer(ifindex),
            REDIRECT => Self::Redirect(ifindex),
            REDIRECT_NEIGH => Self::RedirectNeigh(ifindex),
            _ => Self::Unspec,
        }
    }
}
