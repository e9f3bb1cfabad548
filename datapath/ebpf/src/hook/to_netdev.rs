//! What leaves by the underlay interface: egress. Here the masquerade is done of what the stack has routed, where the
//! programs do not send by themselves.

use datapath_abi::{DropReason, FlowAction, SourceKind, flow_flags::REWRITE_SRC};
use datapath_packet::{ETHERTYPE_IPV4, comes_from};

use crate::{
    context::Packet, forward::execute as deliver, hook::Verdict, lookup, maps::FLOWS_V4, nat::rewrite,
    parse::icmp,
};

/// On, with another source where the flow's entry says so. Whatever is not an endpoint's is left alone, and nothing is
/// counted: `from_endpoint` has.
#[inline(always)]
pub fn decide(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let ingress = packet.ingress_ifindex();
    if ingress == 0 || lookup::config().is_err() || lookup::endpoint_at(ingress).is_err() {
        return Ok(Verdict::Leave);
    }
    match packet.ethernet() {
        Ok(ethernet) if ethernet.ethertype_be == ETHERTYPE_IPV4 => {}
        _ => return Ok(Verdict::Leave),
    }
    let Ok(ip) = packet.parse_ipv4() else { return Ok(Verdict::Leave) };
    rewrite::find_ports(packet, ip);
    // SAFETY: as in `flows::Flow::entry`; used at once.
    let entry =
        unsafe { if packet.is_error { icmp::flow_of(packet).as_ref() } else { FLOWS_V4.get(packet.key) } };
    if let Some(entry) = entry
        && entry.flags & REWRITE_SRC != 0
        && entry.action == FlowAction::Stack as u8
        && comes_from(entry, SourceKind::Endpoint, ingress)
    {
        deliver::rewrite(packet, ip, entry)?;
    }
    Ok(Verdict::Leave)
}
