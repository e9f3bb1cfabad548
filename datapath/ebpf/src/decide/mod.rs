//! What is decided about a packet whose flow is not known: the one pipeline, for all hooks.
//!
//! Nothing before the policy step has a side effect: no entry is written or removed, no port is taken, no affinity is
//! remembered. What a step finds out is in the packet context, where the next steps read it.

pub mod flow;
pub mod location;
pub mod origin;
pub mod pair;
pub mod policy;
pub mod previous;
pub mod source_nat;

use datapath_abi::{DropReason, NodeConfig};

use crate::{
    context::{Origin, Packet},
    service,
};

/// Decides both entries of the packet's flow ([`Packet::pair`]).
///
/// # Errors
/// Those of the steps. The packet's key is then again the one that the packet came with.
#[inline(always)]
pub fn decide(packet: &mut Packet, config: &NodeConfig, origin: Origin) -> Result<(), DropReason> {
    let decision = run_steps(packet, config, origin);
    previous::restore_key(packet);
    decision
}

#[inline(always)]
fn run_steps(packet: &mut Packet, config: &NodeConfig, origin: Origin) -> Result<(), DropReason> {
    // Where the stack delivers, and without a tunnel, addresses are what they are.
    let translates = !matches!(origin, Origin::Stack | Origin::Native);
    packet.step(|packet| {
        origin::check(packet, config, origin)?;
        previous::apply(packet, config, translates)
    })?;
    if translates {
        packet.step(|packet| service::choose_backend(packet, config))?;
    }
    packet.step(|packet| location::find(packet, config))?;
    policy::evaluate(packet)?;
    packet.step(|packet| {
        if translates {
            source_nat::choose(packet, config)?;
        }
        pair::compute(packet)
    })
}
