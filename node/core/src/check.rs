//! What checkers ask of a node, beside what everybody may read.

use datapath_plan::Tables;
use ipnetwork::IpNetwork;
use kvstore_schema::Revision;

use crate::node::Node;

impl Node {
    /// Up to which revision the store is known.
    pub fn revision(&self) -> Revision {
        self.view.revision()
    }

    /// The blocks that the store has confirmed to be this node's.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        self.ipam.held.keys().copied()
    }

    /// What the kernel should hold, with every node, block, record and address looked at again. O(all).
    ///
    /// It is what [`Node::wanted`] says; if not, some change has not touched all that depends on it.
    pub fn wanted_anew(&self) -> Tables {
        let mut copy = self.clone();
        if copy.audit.observed {
            copy.touch_everything();
            copy.refresh_desired();
        }
        copy.wanted().clone()
    }

    fn touch_everything(&mut self) {
        self.touch_all_peers();
        self.desired.base = true;
        self.services.touched.extend(self.view.services().keys().cloned());
        self.touch_all_members();
        self.desired.nodes.extend(self.view.nodes().keys().cloned());
        self.desired.prefixes.extend(self.view.cidrs().keys().copied());
        self.desired.prefixes.extend(self.peers.owned_cidrs());
        self.desired.prefixes.extend(self.reconciler.wanted().routes.keys().copied());
        for (node, records) in self.view.endpoints().iter().filter(|(node, _)| **node != self.config.node) {
            self.desired.records.extend(records.keys().map(|ip| (node.clone(), *ip)));
        }
        let exact = self.reconciler.wanted().ipcache.keys();
        self.desired
            .addresses
            .extend(exact.filter(|prefix| IpNetwork::from(prefix.ip()) == **prefix).map(IpNetwork::ip));
    }
}
