//! ARP for IPv4 over Ethernet (RFC 826): workloads ask for their gateway and for nothing else.

use datapath_abi::{DropReason, EndpointEntry, V4};

use crate::wire;

/// An ARP packet after its Ethernet header.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Hardware type, protocol type, their lengths: [`Arp::ETHERNET_IPV4`].
    pub format: [u8; 6],
    /// [`Arp::REQUEST`] or [`Arp::REPLY`].
    pub operation_be: [u8; 2],
    /// Sender's Ethernet address.
    pub sender_mac: [u8; 6],
    /// Sender's IPv4 address; 0 in a probe (RFC 5227).
    pub sender: V4,
    /// Target's Ethernet address; a request asks for it.
    pub target_mac: [u8; 6],
    /// Target's IPv4 address.
    pub target: V4,
}

wire! { Arp = 28 }

impl Arp {
    /// The one format that is accepted: Ethernet, IPv4, 6 and 4 bytes.
    pub const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    /// Who has `target`?
    pub const REQUEST: [u8; 2] = [0, 1];
    /// `sender` is at `sender_mac`.
    pub const REPLY: [u8; 2] = [0, 2];
}

/// The reply to a workload's request for its gateway.
///
/// # Errors
/// [`DropReason::ArpRefused`] for everything but a request of `endpoint` itself for `gateway`. A reply for another address
/// would be of no use, as all traffic goes by the gateway, and would hide wrong configuration.
#[inline(always)]
pub fn arp_reply(request: &Arp, endpoint: &EndpointEntry, gateway: V4) -> Result<Arp, DropReason> {
    let own = request.sender == endpoint.address_v4 && request.sender_mac == endpoint.mac;
    if request.format != Arp::ETHERNET_IPV4
        || request.operation_be != Arp::REQUEST
        || request.target != gateway
        || !own
    {
        return Err(DropReason::ArpRefused);
    }
    Ok(Arp {
        format: Arp::ETHERNET_IPV4,
        operation_be: Arp::REPLY,
        sender_mac: endpoint.host_mac,
        sender: gateway,
        target_mac: request.sender_mac,
        target: request.sender,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: V4 = [10, 0, 1, 1];
    const ENDPOINT: EndpointEntry = EndpointEntry {
        ifindex: 7,
        id: 1,
        identity: 300,
        address_v4: [10, 0, 1, 5],
        mac: [2, 0, 0, 0, 0, 5],
        host_mac: [2, 0, 0, 0, 0, 6],
    };
    const REQUEST: Arp = Arp {
        format: Arp::ETHERNET_IPV4,
        operation_be: Arp::REQUEST,
        sender_mac: ENDPOINT.mac,
        sender: ENDPOINT.address_v4,
        target_mac: [0; 6],
        target: GATEWAY,
    };

    #[test]
    fn arp_reply_is_for_the_gateway() {
        let expected = Arp {
            format: Arp::ETHERNET_IPV4,
            operation_be: Arp::REPLY,
            sender_mac: ENDPOINT.host_mac,
            sender: GATEWAY,
            target_mac: ENDPOINT.mac,
            target: ENDPOINT.address_v4,
        };
        assert_eq!(arp_reply(&REQUEST, &ENDPOINT, GATEWAY), Ok(expected));
    }

    #[test]
    fn arp_reply_is_refused_for_anything_else() {
        let refused = [
            ("another target", Arp { target: [10, 0, 1, 9], ..REQUEST }),
            ("an answer", Arp { operation_be: Arp::REPLY, ..REQUEST }),
            ("another's address", Arp { sender: [10, 0, 1, 6], ..REQUEST }),
            ("another's Ethernet address", Arp { sender_mac: [2, 0, 0, 0, 0, 9], ..REQUEST }),
            ("another format", Arp { format: [0, 6, 8, 0, 6, 4], ..REQUEST }),
        ];
        for (what, request) in refused {
            assert_eq!(arp_reply(&request, &ENDPOINT, GATEWAY), Err(DropReason::ArpRefused), "{what}");
        }
    }
}
