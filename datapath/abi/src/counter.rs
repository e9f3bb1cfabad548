//! Why packets are dropped, and the counters by reason and direction.

use crate::abi_bytes;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $key:literal;)+) => {
        /// Why a packet was dropped. Numbers are stable: they are in events and pinned counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name = $number,)+ }

        impl DropReason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The reason of a number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// The word used in metrics, events and on the command line.
            pub const fn key(self) -> &'static str {
                match self { $(Self::$name => $key,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Headers are cut short, or their lengths contradict one another.
    Malformed = 1, "malformed";
    /// The packet is neither IPv4 nor ARP.
    UnsupportedProtocol = 2, "unsupported-protocol";
    /// A workload sent from an address that is not its own.
    SourceSpoofed = 3, "source-spoofed";
    /// A workload sent to the tunnel port of a node.
    TunnelPort = 4, "tunnel-port";
    /// A tunnel packet from an address that is no node of the fleet.
    UnknownNode = 5, "unknown-node";
    /// A tunnel packet whose inner source lies outside the sending node's addresses.
    InnerSource = 6, "inner-source";
    /// A tunnel packet with an identity that no node may send.
    ForgedIdentity = 7, "forged-identity";
    /// No endpoint here has the destination address.
    UnknownDestination = 8, "unknown-destination";
    /// The destination's node has no entry in the nodes map.
    NoTunnelEndpoint = 9, "no-tunnel-endpoint";
    /// The TTL is used up.
    TtlExceeded = 10, "ttl-exceeded";
    /// The flow table took no entry.
    FlowTableFull = 11, "flow-table-full";
    /// An ARP request for something else than the gateway, or a malformed request.
    ArpRefused = 12, "arp-refused";
    /// The interface is not known as an endpoint's.
    UnknownEndpoint = 13, "unknown-endpoint";
    /// The configuration map is empty or of another version.
    NotConfigured = 14, "not-configured";
    /// A helper of the kernel failed.
    HelperFailed = 15, "helper-failed";
    /// A fragment whose flow is not known.
    Fragment = 16, "fragment";
    /// Sender's Ethernet address is not the endpoint's own.
    SourceMac = 17, "source-mac";
    /// The packet would have to be translated, and no flow says how.
    NoTranslation = 18, "no-translation";
    /// No port is free to masquerade one more flow to this destination.
    MasqueradePorts = 19, "masquerade-ports";
    /// The protocol cannot be translated.
    MasqueradeProtocol = 20, "masquerade-protocol";
    /// The packet is longer than the way onwards carries, and must not be fragmented.
    TooBig = 21, "too-big";
    /// A packet from the underlay with the address of a workload that cannot have sent it from there.
    UnderlaySource = 22, "underlay-source";
    /// The service has no backend for the packet, or the backend is gone.
    NoBackend = 23, "no-backend";
    /// The client is not in the service's source ranges.
    ServiceSource = 24, "service-source";
    /// The source is in a network whose packets are refused.
    DroppedNetwork = 25, "dropped-network";
}

/// Which way a packet goes, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Out of an endpoint or of the node.
    Egress = 0,
    /// Towards an endpoint or the node.
    Ingress = 1,
}

impl Direction {
    /// Both directions.
    pub const ALL: &'static [Self] = &[Self::Egress, Self::Ingress];

    /// The word used in metrics, events and on the command line.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// In the place of a reason: packets that XDP forwarded. They are counted among the forwarded packets, too.
pub const COUNTED_BY_XDP: u8 = 254;

/// Slots of the counter map: reason 0 (forwarded) to 253 for each direction, [`COUNTED_BY_XDP`], and 255: events
/// that the ring did not take.
pub const COUNTER_SLOTS: u32 = 512;

/// The slot of a reason (0: forwarded, 255: events lost) and direction.
pub const fn counter_slot(reason: u8, direction: Direction) -> u32 {
    (reason as u32) << 1 | direction as u32
}

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

abi_bytes! {
    Counter = 16,
}
