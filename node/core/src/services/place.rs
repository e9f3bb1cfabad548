//! Where backends are, seen from this node: which are its own, which are near.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use identity::{NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::service::{ServiceRecord, Topology, TrafficPolicy};

use super::{Member, Services};
use crate::{NodeConfig, context::Context, fleet::Fleet, ipcache::Sources, peers::Peers};

/// The node label that names the zone.
const ZONE: &str = "zone";

/// How near a backend is; the nearest are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    SameNode,
    SameZone,
    Elsewhere,
}

/// Whether an address is that of an endpoint of this node, or would be.
pub(super) fn is_here(sources: Sources<'_>, address: IpAddr) -> bool {
    let owner = sources.peers.owner_of_ip(address);
    sources.endpoints.at(address).is_some() || owner == Some(sources.fleet.node())
}

impl Services {
    /// The members that are preferred: the nearest ones that exist.
    pub(super) fn nearest<'a>(
        &self,
        config: &NodeConfig,
        sources: Sources<'_>,
        topology: Topology,
        members: Vec<(&'a (Ipv4Addr, u16), &'a Member)>,
    ) -> impl Iterator<Item = (&'a (Ipv4Addr, u16), &'a Member)> + use<'a> {
        let distance = |address: IpAddr| match topology {
            Topology::Any => Distance::Elsewhere,
            Topology::Node if is_here(sources, address) => Distance::SameNode,
            Topology::Node | Topology::Zone if self.is_in_zone(config, sources, address) => {
                Distance::SameZone
            }
            Topology::Node | Topology::Zone => Distance::Elsewhere,
        };
        let distances: Vec<Distance> =
            members.iter().map(|((address, _), _)| distance((*address).into())).collect();
        let least = distances.iter().min().copied();
        let both = members.into_iter().zip(distances);
        both.filter(move |(_, distance)| Some(*distance) == least).map(|(member, _)| member)
    }

    fn is_in_zone(&self, config: &NodeConfig, sources: Sources<'_>, address: IpAddr) -> bool {
        let Some(zone) = config.node_labels.get(ZONE) else { return false };
        let zone_of = |owner: &NodeName| self.zones.get(owner).map(String::as_str);
        is_here(sources, address) || sources.peers.owner_of_ip(address).and_then(zone_of) == Some(zone)
    }

    /// Notes whether the place of a service's fixed backends matters.
    pub(super) fn note_placed(&mut self, name: &ServiceName, record: Option<&ServiceRecord>) {
        let placed = record.is_some_and(|ServiceRecord { spec, .. }| {
            let by_place = spec.topology != Topology::Any
                || spec.traffic_policy == TrafficPolicy::Local
                || spec.ports.iter().any(|port| port.host_port.is_some());
            by_place && !spec.backends.is_empty()
        });
        match placed {
            true => drop(self.placed.insert(name.clone())),
            false => drop(self.placed.remove(name)),
        }
    }

    /// Blocks have other owners: their addresses are at other places.
    pub(crate) fn on_moved_blocks(&self, cx: &mut Context, blocks: &BTreeSet<IpNetwork>) {
        for block in blocks {
            let (IpAddr::V4(first), IpAddr::V4(last)) = (block.network(), block.broadcast()) else {
                continue;
            };
            cx.changes.services.extend(self.index.selecting_between(first, last));
            cx.changes.services.extend(self.placed.iter().cloned());
        }
    }

    /// A node's record came, changed or went: it may be in another zone.
    pub(crate) fn on_node_record(&mut self, cx: &mut Context, fleet: &Fleet, peers: &Peers, node: &NodeName) {
        let record = fleet.view().nodes().get(node).map(|entry| &entry.record);
        let zone = record.and_then(|record| record.labels.get(ZONE)).map(str::to_owned);
        let before = match zone.clone() {
            Some(zone) => self.zones.insert(node.clone(), zone),
            None => self.zones.remove(node),
        };
        if before != zone {
            self.on_moved_blocks(cx, &peers.owned_by(node).collect());
        }
    }
}
