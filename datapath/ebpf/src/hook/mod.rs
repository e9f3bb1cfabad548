//! The classifiers: which steps each takes, and in which order.
//!
//! A classifier parses the packet and looks up its flow (`decide::flow::lookup`). Then all of them go the same way
//! ([`forward_packet`]): a known flow is carried out; an unknown one is decided, carried out and written.

mod from_endpoint;
mod from_host;
mod from_netdev;
mod from_tunnel;
mod to_endpoint;
mod to_netdev;

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use datapath_abi::{Direction, DropReason, NodeConfig};

use crate::{
    context::{Origin, Packet},
    decide::{decide, flow::Flow, pair},
    forward::{
        execute,
        reject::{ReturnPath, send_reject},
    },
    report,
    verdict::Verdict,
};

/// Host side of an endpoint's device, ingress.
#[classifier]
pub fn from_endpoint(context: TcContext) -> i32 {
    run(&context, Direction::Egress, Some(ReturnPath::Endpoint), from_endpoint::handle)
}

/// Host side of an endpoint's device, egress.
#[classifier]
pub fn to_endpoint(context: TcContext) -> i32 {
    run(&context, Direction::Ingress, None, to_endpoint::handle)
}

/// `warren_vxlan`, ingress.
#[classifier]
pub fn from_tunnel(context: TcContext) -> i32 {
    run(&context, Direction::Ingress, Some(ReturnPath::Tunnel), from_tunnel::handle)
}

/// `warren_host`, egress.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    run(&context, Direction::Egress, Some(ReturnPath::Host), from_host::handle)
}

/// The underlay interface, ingress.
#[classifier]
pub fn from_netdev(context: TcContext) -> i32 {
    run(&context, Direction::Ingress, Some(ReturnPath::Underlay), from_netdev::handle)
}

/// The underlay interface, egress.
#[classifier]
pub fn to_netdev(context: TcContext) -> i32 {
    run(&context, Direction::Egress, None, to_netdev::handle)
}

/// Handles a packet, counts it, and tells the kernel, and the sender of a dropped packet, what became of it.
#[inline(always)]
fn run(
    context: &TcContext,
    direction: Direction,
    return_path: Option<ReturnPath>,
    handle: impl FnOnce(&mut Packet) -> Result<Verdict, DropReason>,
) -> i32 {
    let Some(mut packet) = Packet::new(context, direction) else { return TC_ACT_SHOT };
    match handle(&mut packet) {
        Ok(Verdict::Unspec) => Verdict::Unspec.carry_out(),
        Ok(verdict) => {
            report::forwarded(&packet);
            verdict.carry_out()
        }
        Err(reason) => {
            report::dropped(&mut packet, reason);
            match return_path.and_then(|path| send_reject(&packet, path, reason)) {
                Some(verdict) => verdict.carry_out(),
                None => TC_ACT_SHOT,
            }
        }
    }
}

/// Sends on a packet by the entry of its flow, or by a decision, which is then written. `origin`: by which proof an unknown
/// flow's sender is known.
#[inline(always)]
fn forward_packet(
    packet: &mut Packet,
    config: &NodeConfig,
    known: Option<Flow>,
    origin: Origin,
) -> Result<Verdict, DropReason> {
    let is_from_stack = origin == Origin::Host;
    match known {
        Some(flow) => {
            let verdict = execute(packet, config, flow.entry(), is_from_stack)?;
            flow.touch(packet);
            Ok(verdict)
        }
        None => {
            decide(packet, config, origin)?;
            let entry = pair::own_entry(packet);
            let verdict = execute(packet, config, entry, is_from_stack)?;
            packet.step(pair::write)?;
            Ok(verdict)
        }
    }
}
