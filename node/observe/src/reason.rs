//! The meaning and the remedy of each drop reason.

use datapath_abi::DropReason;

/// The explanation of a drop reason, for human readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// What happened, in half a line.
    pub meaning: &'static str,
    /// What to check, or to do.
    pub remedy: &'static str,
}

/// The explanation of a reason.
pub const fn advice(reason: DropReason) -> Advice {
    let (meaning, remedy) = match reason {
        DropReason::Malformed => (
            "headers are truncated or contradictory",
            "capture the packet at its source; a broken sender or an attack",
        ),
        DropReason::UnsupportedProtocol => {
            ("neither IPv4 nor ARP", "endpoints have IPv4 only; disable IPv6 in the workload")
        }
        DropReason::SourceSpoofed => (
            "a workload sent from an address that is not its own",
            "the workload may use only its own address: see `warren endpoint get NAME`",
        ),
        DropReason::TunnelPort => (
            "a workload sent to the tunnel port of a node",
            "workloads must not forge tunnel packets; if another application uses the port, change fleet.tunnel_port",
        ),
        DropReason::UnknownNode => (
            "a tunnel packet from an address that no node of the fleet has",
            "compare the outer address with `warren node list`; a node that changed its address, or a forgery",
        ),
        DropReason::InnerSource => (
            "a tunnel packet whose inner source does not belong to the sending node",
            "compare `warren ip list` on both nodes; a stale claim on the sender, or a forgery",
        ),
        DropReason::ForgedIdentity => {
            ("a tunnel packet with an identity that no node may send", "check the sending node; a forgery")
        }
        DropReason::UnknownDestination => (
            "no endpoint here has the destination address",
            "the endpoint was deleted or never existed: see `warren endpoint list` on this node",
        ),
        DropReason::NoTunnelEndpoint => (
            "the underlay address of the destination's node is not known",
            "see `warren node list` and `warren state diff`; the node may just have been removed",
        ),
        DropReason::TtlExceeded => ("the time to live has expired", "a routing loop, or a traceroute"),
        DropReason::FlowTableFull => (
            "the flow table accepted no entry",
            "see `warren map list`; a port scan, or more flows than the table holds",
        ),
        DropReason::ArpRefused => (
            "an ARP request for another address than the gateway, or a malformed one",
            "the workload must route all packets through its gateway: check its addresses and routes",
        ),
        DropReason::UnknownEndpoint => (
            "the interface does not belong to an endpoint",
            "`warren state diff --repair`; occurs briefly while an endpoint is added or deleted",
        ),
        DropReason::NotConfigured => (
            "the configuration map is empty or of another version",
            "the agent is starting, or programs of another version are attached: see `warren status`",
        ),
        DropReason::HelperFailed => ("a BPF helper failed", "check the kernel log; memory may be short"),
        DropReason::Fragment => {
            ("a fragment whose flow is not known", "lower the sender's packet size below the endpoint's MTU")
        }
        DropReason::SourceMac => (
            "a workload sent from a MAC address that is not its own",
            "the workload must not change its interface's MAC address, nor bridge other devices to it",
        ),
        DropReason::NoTranslation => (
            "to a port of the masquerade range that no known flow uses",
            "late replies of ended flows; if many, the flow table is too small (see `warren map list`), or a port scan",
        ),
        DropReason::MasqueradePorts => (
            "no masquerade port is free for a new flow to the destination",
            "close idle connections to it, widen masquerade.ports, or exclude the destination from masquerade",
        ),
        DropReason::MasqueradeProtocol => (
            "masquerade does not support the protocol",
            "masquerade supports TCP, UDP and ICMP echo; for others, exclude the destination (masquerade.exclude) and route the endpoints' addresses",
        ),
        DropReason::TooBig => (
            "larger than the next MTU, and not to be fragmented",
            "the sender got an ICMP error; if it continues, its MTU was set by hand, or ICMP is dropped on the way",
        ),
        DropReason::UnderlaySource => (
            "from the underlay, with the source address of a workload that cannot have sent it there",
            "a forgery, or a node in native mode in a fleet with a tunnel: see `warren status` on both",
        ),
        DropReason::NoBackend => (
            "to a service without backends, or to a backend that was removed",
            "the client was rejected: start endpoints with the labels that the service selects, or correct its selector",
        ),
        DropReason::ServiceSource => (
            "from an external client outside the service's source ranges",
            "add the client's range to the service's sourceRanges, if it is to be allowed",
        ),
        DropReason::DroppedNetwork => (
            "from a network in datapath.drop_cidrs",
            "remove the network from datapath.drop_cidrs and restart warrend, if it is to be allowed",
        ),
    };
    Advice { meaning, remedy }
}

/// The explanation of a reason, by its key in events and metrics.
pub fn advice_for_key(key: &str) -> Option<Advice> {
    DropReason::ALL.iter().find(|reason| reason.key() == key).map(|&reason| advice(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_reason_texts_are_distinct() {
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
