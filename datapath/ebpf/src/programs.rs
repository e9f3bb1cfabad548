//! The entry points.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use datapath_abi::{Direction, DropReason};

use crate::{from_endpoint, from_host, from_overlay, packet::Packet, report, to_endpoint};

/// What becomes of a packet that is not dropped.
pub enum Verdict {
    /// On as it is: up to the stack at ingress, out of the device at egress.
    Pass,
    /// Straight into the other end of this (veth) interface, past this node's stack. Only at ingress.
    Into(u32),
    /// Out of this interface.
    Out(u32),
    /// Out of this interface, to the neighbour that the kernel's routes lead to.
    Neighbour(u32),
}

#[classifier]
pub fn from_endpoint(context: TcContext) -> i32 {
    let mut packet = Packet::new(&context, Direction::Egress);
    let verdict = from_endpoint::decide(&mut packet);
    finish(&packet, verdict)
}

#[classifier]
pub fn to_endpoint(context: TcContext) -> i32 {
    let mut packet = Packet::new(&context, Direction::Ingress);
    let verdict = to_endpoint::decide(&mut packet);
    finish(&packet, verdict)
}

#[classifier]
pub fn from_overlay(context: TcContext) -> i32 {
    let mut packet = Packet::new(&context, Direction::Ingress);
    let verdict = from_overlay::decide(&mut packet);
    finish(&packet, verdict)
}

#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    let mut packet = Packet::new(&context, Direction::Egress);
    let verdict = from_host::decide(&mut packet);
    finish(&packet, verdict)
}

#[inline(always)]
fn finish(packet: &Packet, verdict: Result<Verdict, DropReason>) -> i32 {
    match verdict {
        Ok(Verdict::Pass) => {
            report::forwarded(packet);
            TC_ACT_OK
        }
        Ok(Verdict::Into(ifindex)) => {
            report::forwarded(packet);
            // SAFETY: a helper without pointers.
            unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
        }
        Ok(Verdict::Out(ifindex)) => {
            report::forwarded(packet);
            // SAFETY: a helper without pointers.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Ok(Verdict::Neighbour(ifindex)) => {
            report::forwarded(packet);
            // SAFETY: without parameters the kernel looks for the next hop itself.
            unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
        }
        Err(reason) => {
            report::dropped(packet, reason);
            TC_ACT_SHOT
        }
    }
}
