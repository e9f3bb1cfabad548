//! The tunnel between nodes: what a member node may send through it (promise P7), and how it names a backend for direct
//! server return.

use datapath_abi::{DIRECT_DST_MARK, DIRECT_SRC_MARK, DropReason, MacBytes, V4, identity_number as identity};

use crate::{Macs, Owner, OwnerKind};

/// The identity that the VNI carries for a local one. "host" is "remote-node" to other nodes, and a CIDR identity, which
/// only this node numbers, is the world.
#[inline(always)]
pub fn tunnel_identity(local: u32) -> u32 {
    match local {
        identity::HOST => identity::REMOTE_NODE,
        local if local > identity::FLEET_MAX => identity::WORLD,
        local => local,
    }
}

/// Whether the node with index `node` may send from an inner source with this owner, with `vni` as identity. A fleet
/// identity in the VNI that is not the ipcache's is no forgery: the sending node knows its endpoints first.
///
/// # Errors
/// [`DropReason::InnerSource`]: the address is not behind that node. [`DropReason::ForgedIdentity`]: no workload or node
/// has the identity, or a node's own address comes with a workload's identity, or a workload's address with the world's.
#[inline(always)]
pub fn check_tunnel_source(node: u32, source: &Owner, vni: u32) -> Result<(), DropReason> {
    if !matches!(source.kind, OwnerKind::OtherNode) || source.node != node {
        return Err(DropReason::InnerSource);
    }
    let is_node = source.identity == identity::REMOTE_NODE;
    let may_be_sent = match vni {
        identity::REMOTE_NODE => true,
        // An external client that the node has let in to a service: the packet has the node's own address.
        identity::WORLD => is_node,
        identity::UNMANAGED | identity::HEALTH | identity::FLEET_MIN..=identity::FLEET_MAX => !is_node,
        _ => false,
    };
    if may_be_sent { Ok(()) } else { Err(DropReason::ForgedIdentity) }
}

/// The inner Ethernet addresses, destination and source, that name the backend of a packet for direct server return.
#[inline(always)]
pub fn dsr_macs(address: V4, port_be: [u8; 2]) -> (MacBytes, MacBytes) {
    let ([d, e], [s, t, u, v]) = (DIRECT_DST_MARK, DIRECT_SRC_MARK);
    let ([a, b, c, last], [high, low]) = (address, port_be);
    ([d, e, a, b, c, last], [s, t, u, v, high, low])
}

/// Whether inner Ethernet addresses name a backend for direct server return, and the backend's address and port.
#[inline(always)]
pub fn dsr_backend(macs: &Macs) -> (bool, V4, [u8; 2]) {
    let ([d, e, a, b, c, last], [s, t, u, v, high, low]) = (macs.dst, macs.src);
    ([d, e] == DIRECT_DST_MARK && [s, t, u, v] == DIRECT_SRC_MARK, [a, b, c, last], [high, low])
}

#[cfg(test)]
mod tests {
    use datapath_abi::{IpcacheEntry, NODE_NONE, NODE_SELF};

    use super::*;

    #[test]
    fn dsr_backend_is_named_by_ethernet_addresses() {
        let (dst, src) = dsr_macs([10, 0, 2, 7], [31, 144]);
        assert_eq!((dst[0] & 3, src[0] & 3), (2, 2), "unicast, locally administered");
        assert_eq!(dsr_backend(&Macs { dst, src }), (true, [10, 0, 2, 7], [31, 144]));
        let others = Macs { dst: datapath_abi::TUNNEL_DST_MAC, src: datapath_abi::TUNNEL_SRC_MAC };
        assert!(!dsr_backend(&others).0);
        assert!(!dsr_backend(&Macs { dst, ..others }).0 && !dsr_backend(&Macs { src, ..others }).0);
    }

    const NODE: u32 = 5;

    fn check(node: u32, source: Option<(u32, u32)>, vni: u32, expected: Result<(), DropReason>) {
        let owner = Owner::of(source.map(|(identity, node)| IpcacheEntry { identity, node }));
        assert_eq!(check_tunnel_source(node, &owner, vni), expected, "{source:?} {vni}");
    }

    #[test]
    fn tunnel_source_may_be_an_address_of_the_sending_node() {
        check(NODE, Some((300, NODE)), 300, Ok(()));
        check(NODE, Some((300, NODE)), 301, Ok(())); // the VNI is newer
        check(NODE, Some((identity::UNKNOWN, NODE)), 300, Ok(())); // only its CIDR is known
        check(NODE, Some((identity::REMOTE_NODE, NODE)), identity::REMOTE_NODE, Ok(()));
        check(NODE, Some((identity::REMOTE_NODE, NODE)), identity::WORLD, Ok(())); // for a client outside
        check(NODE, Some((300, NODE)), identity::HEALTH, Ok(()));
    }

    #[test]
    fn tunnel_source_of_another_node_is_refused() {
        check(NODE, None, 300, Err(DropReason::InnerSource));
        check(NODE, Some((300, 6)), 300, Err(DropReason::InnerSource));
        check(NODE, Some((300, NODE_SELF)), 300, Err(DropReason::InnerSource));
        check(NODE_SELF, Some((300, NODE_SELF)), 300, Err(DropReason::InnerSource));
        check(NODE_NONE, Some((300, NODE_NONE)), 300, Err(DropReason::InnerSource));
    }

    #[test]
    fn tunnel_source_with_anothers_identity_is_refused() {
        for vni in [identity::UNKNOWN, identity::HOST, identity::WORLD, 5, 7, 255, identity::FLEET_MAX + 1] {
            check(NODE, Some((300, NODE)), vni, Err(DropReason::ForgedIdentity));
        }
        check(NODE, Some((identity::REMOTE_NODE, NODE)), 300, Err(DropReason::ForgedIdentity));
    }

    #[test]
    fn identity_numbers_agree_with_the_identity_crate() {
        use ::identity::Identity;
        let pairs = [
            (identity::UNKNOWN, Identity::UNKNOWN),
            (identity::HOST, Identity::HOST),
            (identity::WORLD, Identity::WORLD),
            (identity::UNMANAGED, Identity::UNMANAGED),
            (identity::HEALTH, Identity::HEALTH),
            (identity::REMOTE_NODE, Identity::REMOTE_NODE),
            (identity::FLEET_MIN, Identity::FLEET_MIN),
            (identity::FLEET_MAX, Identity::FLEET_MAX),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs.get());
        }
    }
}
