//! Whose an address is.

use datapath_abi::{IpcacheEntry, NODE_NONE, NODE_SELF, identity_number as identity};

/// The kinds of owners of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerKind {
    /// This node itself.
    ThisNode,
    /// This node's CIDRs. Only the endpoint that has the address proves anything by it.
    ThisNodesCidr,
    /// Another node, or whoever is behind it.
    OtherNode,
    /// Nobody in the fleet.
    Outside,
}

/// The owner of an address, as the ipcache knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Which kind of owner.
    pub kind: OwnerKind,
    /// Index of the node that the address is behind; [`NODE_NONE`] outside of the fleet.
    pub node: u32,
    /// The identity; never unknown outside of the fleet, where it is the world's at least.
    pub identity: u32,
}

impl Owner {
    /// Of the address with this ipcache entry; `None`: the ipcache has none.
    #[inline(always)]
    pub const fn of(entry: Option<IpcacheEntry>) -> Self {
        let (node, identity) = match entry {
            Some(entry) => (entry.node, entry.identity),
            None => (NODE_NONE, identity::UNKNOWN),
        };
        match (node, identity) {
            (NODE_NONE, identity::UNKNOWN) => {
                Self { kind: OwnerKind::Outside, node, identity: identity::WORLD }
            }
            (NODE_NONE, _) => Self { kind: OwnerKind::Outside, node, identity },
            (NODE_SELF, identity::HOST) => Self { kind: OwnerKind::ThisNode, node, identity },
            (NODE_SELF, _) => Self { kind: OwnerKind::ThisNodesCidr, node, identity },
            _ => Self { kind: OwnerKind::OtherNode, node, identity },
        }
    }

    /// Whether the address is a node's own, this one's or another's.
    #[inline(always)]
    pub const fn is_node(&self) -> bool {
        matches!(self.identity, identity::HOST | identity::REMOTE_NODE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_of_each_kind_of_entry() {
        let check = |entry: Option<(u32, u32)>, kind, identity| {
            let entry = entry.map(|(identity, node)| IpcacheEntry { identity, node });
            let owner = Owner::of(entry);
            assert_eq!((owner.kind, owner.identity), (kind, identity), "{entry:?}");
        };
        check(None, OwnerKind::Outside, identity::WORLD);
        check(Some((1 << 24 | 1, NODE_NONE)), OwnerKind::Outside, 1 << 24 | 1);
        check(Some((identity::HOST, NODE_SELF)), OwnerKind::ThisNode, identity::HOST);
        check(Some((300, NODE_SELF)), OwnerKind::ThisNodesCidr, 300);
        check(Some((identity::UNKNOWN, NODE_SELF)), OwnerKind::ThisNodesCidr, identity::UNKNOWN);
        check(Some((identity::REMOTE_NODE, 5)), OwnerKind::OtherNode, identity::REMOTE_NODE);
        check(Some((identity::UNKNOWN, 5)), OwnerKind::OtherNode, identity::UNKNOWN);
    }
}
