//! What leaves by the underlay interface: egress. The source of what the stack has routed for endpoints is translated here,
//! where the programs do not send by themselves.

use datapath_abi::{DropReason, FlowAction, SourceKind, flow_flags::REWRITE_SRC};
use datapath_packet::{ETHERTYPE_IPV4, comes_from};

use crate::{
    context::Packet,
    decide::flow,
    lookup,
    maps::FLOWS_V4,
    nat,
    parse::{self, fragment},
    verdict::Verdict,
};

/// On, with another source where the flow's entry says so. A packet that is not an endpoint's is left alone, and nothing is
/// counted: `from_endpoint` has.
#[inline(always)]
pub fn handle(packet: &mut Packet) -> Result<Verdict, DropReason> {
    let ingress = packet.ingress_ifindex();
    if ingress == 0 || lookup::config().is_err() || lookup::endpoint_at(ingress).is_err() {
        return Ok(Verdict::Unspec);
    }
    match parse::ethernet(packet) {
        Ok(ethernet) if ethernet.ethertype_be == ETHERTYPE_IPV4 => {}
        _ => return Ok(Verdict::Unspec),
    }
    let Ok(ip) = parse::ipv4(packet) else { return Ok(Verdict::Unspec) };
    fragment::find_ports(packet);
    // SAFETY: as in `Flow::entry`; used at once.
    let entry = unsafe {
        if packet.is_icmp_error { flow::find_quoted(packet).as_ref() } else { FLOWS_V4.get(packet.key) }
    };
    if let Some(entry) = entry
        && entry.flags & REWRITE_SRC != 0
        && entry.action == FlowAction::Stack as u8
        && comes_from(entry, SourceKind::Endpoint, ingress)
    {
        nat::translate(packet, ip, entry)?;
    }
    Ok(Verdict::Unspec)
}
