//! Where backends are, seen from this node: which are its own, which are near.

use std::net::{IpAddr, Ipv4Addr};

use identity::{NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::service::{ServiceRecord, Topology, TrafficPolicy};

use super::Member;
use crate::node::Node;

/// The label of a node that says which zone it is in.
const ZONE: &str = "zone";

/// How near a backend is; the nearest are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    SameNode,
    SameZone,
    Elsewhere,
}

impl Node {
    /// Whether an address is that of an endpoint of this node, or would be.
    pub(super) fn is_here(&self, address: IpAddr) -> bool {
        let owner = self.peers.owner_of_ip(address);
        self.endpoints.at(address).is_some() || owner.is_some_and(|owner| *owner == self.config.node)
    }

    /// The members that are preferred: the nearest ones that there are.
    pub(super) fn nearest<'a>(
        &self,
        topology: Topology,
        members: Vec<(&'a (Ipv4Addr, u16), &'a Member)>,
    ) -> impl Iterator<Item = (&'a (Ipv4Addr, u16), &'a Member)> + use<'a> {
        let distances: Vec<Distance> =
            members.iter().map(|((address, _), _)| self.distance(topology, (*address).into())).collect();
        let least = distances.iter().min().copied();
        let both = members.into_iter().zip(distances);
        both.filter(move |(_, distance)| Some(*distance) == least).map(|(member, _)| member)
    }

    fn distance(&self, topology: Topology, address: IpAddr) -> Distance {
        match topology {
            Topology::Any => Distance::Elsewhere,
            Topology::Node if self.is_here(address) => Distance::SameNode,
            Topology::Node | Topology::Zone if self.is_in_zone(address) => Distance::SameZone,
            Topology::Node | Topology::Zone => Distance::Elsewhere,
        }
    }

    fn is_in_zone(&self, address: IpAddr) -> bool {
        let zone = self.config.node_labels.get(ZONE);
        let owner = || self.peers.owner_of_ip(address);
        let same = |owner: &NodeName| {
            self.services.zones.get(owner).is_some_and(|theirs| Some(theirs.as_str()) == zone)
        };
        zone.is_some() && (self.is_here(address) || owner().is_some_and(same))
    }

    /// Notes whether it matters where the fixed backends of a service are.
    pub(super) fn note_placed(&mut self, name: &ServiceName, record: Option<&ServiceRecord>) {
        let placed = record.is_some_and(|ServiceRecord { spec, .. }| {
            let by_place = spec.topology != Topology::Any
                || spec.traffic_policy == TrafficPolicy::Local
                || spec.ports.iter().any(|port| port.host_port.is_some());
            by_place && !spec.backends.is_empty()
        });
        match placed {
            true => drop(self.services.placed.insert(name.clone())),
            false => drop(self.services.placed.remove(name)),
        }
    }

    /// A block has another owner: what is inside is elsewhere.
    pub(crate) fn services_of_block_moved(&mut self, block: IpNetwork) {
        let (IpAddr::V4(first), IpAddr::V4(last)) = (block.network(), block.broadcast()) else { return };
        let selecting = self.services.index.selecting_between(first, last);
        self.services.touched.extend(selecting);
        self.services.touched.extend(self.services.placed.iter().cloned());
    }

    /// A node's record came, changed or went: it may be in another zone.
    pub(crate) fn note_zone(&mut self, node: &NodeName) {
        let record = self.view.nodes().get(node).map(|entry| &entry.record);
        let zone = record.and_then(|record| record.labels.get(ZONE)).map(str::to_owned);
        let before = match zone.clone() {
            Some(zone) => self.services.zones.insert(node.clone(), zone),
            None => self.services.zones.remove(node),
        };
        if before != zone {
            let owned = self.peers.owned_by(node);
            owned.into_iter().for_each(|block| self.services_of_block_moved(block));
        }
    }
}
