//! The entry points.

mod from_endpoint;
mod from_host;
mod from_netdev;
mod from_overlay;
mod to_endpoint;
mod to_netdev;

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use datapath_abi::{Direction, DropReason};

use crate::{context::Packet, report};

/// What becomes of a packet that is not dropped.
pub enum Verdict {
    /// It is none of ours: whatever else is attached there, and then the stack, may have it. Not counted.
    Leave,
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
    let Some(mut packet) = Packet::new(&context, Direction::Egress) else { return TC_ACT_SHOT };
    match from_endpoint::decide(&mut packet) {
        Err(reason @ (DropReason::TtlExceeded | DropReason::TooBig | DropReason::NoBackend)) => {
            report::dropped(&mut packet, reason);
            tell(from_endpoint::refuse(&packet, reason))
        }
        verdict => finish(&mut packet, verdict),
    }
}

#[classifier]
pub fn to_endpoint(context: TcContext) -> i32 {
    let Some(mut packet) = Packet::new(&context, Direction::Ingress) else { return TC_ACT_SHOT };
    let verdict = to_endpoint::decide(&mut packet);
    finish(&mut packet, verdict)
}

#[classifier]
pub fn from_overlay(context: TcContext) -> i32 {
    let Some(mut packet) = Packet::new(&context, Direction::Ingress) else { return TC_ACT_SHOT };
    match from_overlay::decide(&mut packet) {
        Err(reason @ DropReason::TtlExceeded) => {
            report::dropped(&mut packet, reason);
            tell(from_overlay::refuse(&packet, reason))
        }
        verdict => finish(&mut packet, verdict),
    }
}

#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    let Some(mut packet) = Packet::new(&context, Direction::Egress) else { return TC_ACT_SHOT };
    match from_host::decide(&mut packet) {
        Err(reason @ DropReason::NoBackend) => {
            report::dropped(&mut packet, reason);
            tell(from_host::refuse(&packet, reason))
        }
        verdict => finish(&mut packet, verdict),
    }
}

#[classifier]
pub fn from_netdev(context: TcContext) -> i32 {
    let Some(mut packet) = Packet::new(&context, Direction::Ingress) else { return TC_ACT_SHOT };
    match from_netdev::decide(&mut packet) {
        Err(reason @ (DropReason::TtlExceeded | DropReason::TooBig | DropReason::NoBackend)) => {
            report::dropped(&mut packet, reason);
            tell(from_netdev::refuse(&packet, reason))
        }
        verdict => finish(&mut packet, verdict),
    }
}

#[classifier]
pub fn to_netdev(context: TcContext) -> i32 {
    let Some(mut packet) = Packet::new(&context, Direction::Egress) else { return TC_ACT_SHOT };
    let verdict = to_netdev::decide(&mut packet);
    finish(&mut packet, verdict)
}

/// Sends the ICMP error that a dropped packet has become, if it has.
#[inline(always)]
fn tell(error: Option<Verdict>) -> i32 {
    match error {
        // SAFETY: a helper without pointers.
        Some(Verdict::Into(ifindex)) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        // SAFETY: a helper without pointers.
        Some(Verdict::Out(ifindex)) => unsafe { bpf_redirect(ifindex, 0) as i32 },
        _ => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn finish(packet: &mut Packet, verdict: Result<Verdict, DropReason>) -> i32 {
    match verdict {
        Ok(Verdict::Leave) => TC_ACT_UNSPEC,
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
