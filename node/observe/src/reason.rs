//! What each drop reason means, and what to do about it: the one place for these texts.

use datapath_abi::DropReason;

/// A drop reason for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// What happened, in half a line.
    pub meaning: &'static str,
    /// What to look at, or to do.
    pub remedy: &'static str,
}

/// The meaning of a reason.
pub const fn advice(reason: DropReason) -> Advice {
    let (meaning, remedy) = match reason {
        DropReason::Malformed => (
            "headers are cut short or contradict one another",
            "capture the packet at its source; a broken sender or an attack",
        ),
        DropReason::UnsupportedProtocol => {
            ("neither IPv4 nor ARP", "endpoints have IPv4 only; turn IPv6 off in the workload if it tries it")
        }
        DropReason::SourceSpoofed => (
            "a workload sent from an address that is not its own",
            "the workload may only use the address it was given: see `warren endpoint get NAME`",
        ),
        DropReason::TunnelPort => (
            "a workload sent to the tunnel port of a node",
            "workloads must not forge tunnel packets; if another service uses this port, change fleet.tunnel_port",
        ),
        DropReason::UnknownNode => (
            "a tunnel packet from an address that is no node of the fleet",
            "compare the outer address with `warren node list`; a node that changed its address, or a forgery",
        ),
        DropReason::InnerSource => (
            "a tunnel packet whose inner source is not behind the node that sent it",
            "compare `warren ip list` on both nodes; a stale claim on the sender, or a forgery",
        ),
        DropReason::ForgedIdentity => {
            ("a tunnel packet with an identity that no node may send", "look at the sending node; a forgery")
        }
        DropReason::UnknownDestination => (
            "no endpoint here has the destination address",
            "the endpoint was deleted or never was: see `warren endpoint list` on this node",
        ),
        DropReason::NoTunnelEndpoint => (
            "the destination's node has no underlay address here",
            "see `warren node list` and `warren state diff`; the node may just have been removed",
        ),
        DropReason::TtlExceeded => {
            ("time to live used up", "a routing loop, or a trace of the route by somebody")
        }
        DropReason::FlowTableFull => (
            "the flow table took no entry",
            "see `warren map list`; a port scan, or more flows than the table holds",
        ),
        DropReason::ArpRefused => (
            "an ARP request for something else than the gateway, or a malformed one",
            "the workload must route everything through its gateway: look at its addresses and routes",
        ),
        DropReason::UnknownEndpoint => (
            "the interface is not known as an endpoint's",
            "`warren state diff` repairs it; seen for moments while an endpoint comes or goes",
        ),
        DropReason::NotConfigured => (
            "the configuration map is empty or of another version",
            "the agent has not finished its start, or another version's programs are attached: see `warren status`",
        ),
        DropReason::HelperFailed => {
            ("a helper of the kernel failed", "look at the kernel's log; memory may be short")
        }
        DropReason::Fragment => (
            "a fragment whose flow cannot be told",
            "lower the sender's packet size below the endpoint's MTU",
        ),
        DropReason::SourceMac => (
            "a workload sent from an Ethernet address that is not its own",
            "the workload must not change its interface's Ethernet address or bridge others onto it",
        ),
        DropReason::NoTranslation => (
            "comes to a port of the masquerade, and no flow is known that has it",
            "late answers to flows that are over; many: the flow table is too small (see `warren map list`), or a port scan",
        ),
        DropReason::MasqueradePorts => (
            "no port is free to masquerade one more flow to this destination",
            "close idle connections to it, widen masquerade.ports, or exclude the destination from masquerade",
        ),
        DropReason::MasqueradeProtocol => (
            "of a protocol that masquerade cannot translate",
            "masquerade translates TCP, UDP and ICMP echo; for others exclude the destination (masquerade.exclude) and route the endpoints' addresses",
        ),
        DropReason::TooBig => (
            "longer than the way onwards carries, and not to be cut into fragments",
            "the sender was told by ICMP: if it goes on, its MTU was raised by hand, or something drops ICMP",
        ),
        DropReason::UnderlaySource => (
            "comes from the underlay with the address of a workload that cannot have sent it from there",
            "a forgery; or a node that routes natively in a fleet with a tunnel: see `warren status` on both",
        ),
        DropReason::NoBackend => (
            "to a service that has no backend for it, or through one that is gone",
            "the client was refused: start endpoints with the labels that the service selects, or mend its selector",
        ),
        DropReason::ServiceSource => (
            "from a client outside that is in none of the service's source ranges",
            "add the client's range to the service's sourceRanges, if it is to be let in",
        ),
        DropReason::DroppedNetwork => (
            "from a network that this node takes nothing from",
            "take the network out of datapath.drop_cidrs and restart warrend, if it is to be let in",
        ),
    };
    Advice { meaning, remedy }
}

/// The meaning of a reason by its key, as events and metrics carry it.
pub fn advice_for_key(key: &str) -> Option<Advice> {
    DropReason::ALL.iter().find(|reason| reason.key() == key).map(|&reason| advice(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_texts_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for &reason in DropReason::ALL {
            let Advice { meaning, remedy } = advice(reason);
            assert!(meaning.len() > 10 && remedy.len() > 10, "{reason:?} is not explained");
            assert!(seen.insert(meaning), "{reason:?} has another reason's text");
            assert_eq!(advice_for_key(reason.key()), Some(advice(reason)));
        }
        assert_eq!(advice_for_key("no-such-reason"), None);
    }
}
