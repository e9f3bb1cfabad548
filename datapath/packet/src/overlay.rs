//! What a member node may send through the tunnel (promise P7).

use datapath_abi::{
    DIRECT_DST_MARK, DIRECT_SRC_MARK, DropReason, IpcacheEntry, MacBytes, NODE_NONE, NODE_SELF, V4,
    identity_number as identity,
};

use crate::Macs;

/// The identity that stands in the VNI for a local one: what is "host" here is "remote-node" elsewhere, and an address
/// range that only this node numbers is the world.
#[inline(always)]
pub fn tunnel_identity(local: u32) -> u32 {
    match local {
        identity::HOST => identity::REMOTE_NODE,
        local if local > identity::FLEET_MAX => identity::WORLD,
        local => local,
    }
}

/// Whether the node with index `node` may send from an inner source that the ipcache knows as `source`
/// (`None`: not at all) with `vni` as identity. An exact ipcache entry with another fleet identity does not
/// count against the VNI: the sender knows its endpoints first.
///
/// # Errors
/// [`DropReason::InnerSource`]: the address is not behind that node. [`DropReason::ForgedIdentity`]: no
/// workload or node has that identity, a node's own address comes with a workload's, or a workload's with the world's.
#[inline(always)]
pub fn check_sender(node: u32, source: Option<IpcacheEntry>, vni: u32) -> Result<(), DropReason> {
    let Some(source) = source else {
        return Err(DropReason::InnerSource);
    };
    if source.node != node || node == NODE_NONE || node == NODE_SELF {
        return Err(DropReason::InnerSource);
    }
    let is_node = source.identity == identity::REMOTE_NODE;
    let may_be_sent = match vni {
        identity::REMOTE_NODE => true,
        // A client outside, whom the node has let in by a service: with the node's own address.
        identity::WORLD => is_node,
        identity::UNMANAGED | identity::HEALTH | identity::FLEET_MIN..=identity::FLEET_MAX => !is_node,
        _ => false,
    };
    if may_be_sent { Ok(()) } else { Err(DropReason::ForgedIdentity) }
}

/// The inner Ethernet addresses, destination and source, of a packet for a backend that answers its client itself.
#[inline(always)]
pub fn direct_macs(address: V4, port_be: [u8; 2]) -> (MacBytes, MacBytes) {
    let ([d, e], [s, t, u, v]) = (DIRECT_DST_MARK, DIRECT_SRC_MARK);
    let ([a, b, c, last], [high, low]) = (address, port_be);
    ([d, e, a, b, c, last], [s, t, u, v, high, low])
}

/// Whether inner Ethernet addresses name a backend, and its address and port.
#[inline(always)]
pub fn direct_place(macs: &Macs) -> (bool, V4, [u8; 2]) {
    let ([d, e, a, b, c, last], [s, t, u, v, high, low]) = (macs.dst, macs.src);
    ([d, e] == DIRECT_DST_MARK && [s, t, u, v] == DIRECT_SRC_MARK, [a, b, c, last], [high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_named_by_ethernet_addresses() {
        let (dst, src) = direct_macs([10, 0, 2, 7], [31, 144]);
        assert_eq!((dst[0] & 3, src[0] & 3), (2, 2), "unicast, locally administered");
        assert_eq!(direct_place(&Macs { dst, src }), (true, [10, 0, 2, 7], [31, 144]));
        let others = Macs { dst: datapath_abi::TUNNEL_DST_MAC, src: datapath_abi::TUNNEL_SRC_MAC };
        assert!(!direct_place(&others).0);
        assert!(!direct_place(&Macs { dst, ..others }).0 && !direct_place(&Macs { src, ..others }).0);
    }

    const NODE: u32 = 5;

    fn check(node: u32, source: Option<(u32, u32)>, vni: u32, expected: Result<(), DropReason>) {
        let entry = source.map(|(identity, node)| IpcacheEntry { identity, node });
        assert_eq!(check_sender(node, entry, vni), expected, "{source:?} {vni}");
    }

    #[test]
    fn members_send_from_their_addresses() {
        check(NODE, Some((300, NODE)), 300, Ok(()));
        check(NODE, Some((300, NODE)), 301, Ok(())); // the VNI is newer
        check(NODE, Some((identity::UNKNOWN, NODE)), 300, Ok(())); // only its CIDR is known
        check(NODE, Some((identity::REMOTE_NODE, NODE)), identity::REMOTE_NODE, Ok(()));
        check(NODE, Some((identity::REMOTE_NODE, NODE)), identity::WORLD, Ok(())); // for a client outside
        check(NODE, Some((300, NODE)), identity::HEALTH, Ok(()));
    }

    #[test]
    fn not_from_others() {
        check(NODE, None, 300, Err(DropReason::InnerSource));
        check(NODE, Some((300, 6)), 300, Err(DropReason::InnerSource));
        check(NODE, Some((300, NODE_SELF)), 300, Err(DropReason::InnerSource));
        check(NODE_SELF, Some((300, NODE_SELF)), 300, Err(DropReason::InnerSource));
        check(NODE_NONE, Some((300, NODE_NONE)), 300, Err(DropReason::InnerSource));
    }

    #[test]
    fn not_as_others() {
        for vni in [identity::UNKNOWN, identity::HOST, identity::WORLD, 5, 7, 255, identity::FLEET_MAX + 1] {
            check(NODE, Some((300, NODE)), vni, Err(DropReason::ForgedIdentity));
        }
        check(NODE, Some((identity::REMOTE_NODE, NODE)), 300, Err(DropReason::ForgedIdentity));
    }

    #[test]
    fn numbers_agree_with_the_identity_crate() {
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
