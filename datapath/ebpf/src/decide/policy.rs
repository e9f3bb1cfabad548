//! Whether the flow is allowed. There are no policies yet: every flow is.

use datapath_abi::{DropReason, PolicyVerdict};

use crate::context::Packet;

/// Judges the flow, of which both ends, the backend and the original direction are known: the ends' identities are
/// `packet.from.identity` and `packet.to.identity`, the other way round for a plain reply
/// ([`crate::decide::previous::is_plain_reply`]).
///
/// # Errors
/// None yet. A denied flow will be dropped here, before anything was changed.
#[inline(always)]
pub fn evaluate(packet: &mut Packet) -> Result<(), DropReason> {
    packet.policy_verdict = PolicyVerdict::Allow;
    Ok(())
}
