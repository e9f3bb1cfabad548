//! How packets leave this node: its underlay, the MTU, the base devices, and a route to each block.

use std::{collections::BTreeSet, net::IpAddr};

use datapath_plan::{Base, BaseUnderlay, Mode, NextHop, RouteValue, Single};
use identity::NodeName;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    DatapathConfig, NativeRoutes, NodeConfig, Underlay, context::Context, fleet::Fleet, peers::Peers,
};

/// This node's place in the underlay. One per node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Routing {
    underlay: Underlay,
    /// How often this node's addresses changed since the start: tells which of a record and a fact is newer.
    moves: u64,
}

impl Routing {
    pub(crate) fn new(underlay: Underlay) -> Self {
        Self { underlay, moves: 0 }
    }

    /// This node's underlay addresses, the tunnel's first.
    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.underlay.addresses
    }

    pub(crate) fn moves(&self) -> u64 {
        self.moves
    }

    pub(crate) fn on_underlay(&mut self, cx: &mut Context, underlay: Underlay) {
        cx.changes.addresses.extend(self.underlay.addresses.iter().copied());
        self.moves += u64::from(self.underlay.addresses != underlay.addresses);
        self.underlay = underlay;
        cx.changes.base = true;
        // Another node may claim one of the new addresses, or become reachable by their address family.
        cx.changes.all_peers = true;
    }

    /// MTU of endpoints and of routes to pods.
    pub(crate) fn pod_mtu_bytes(&self, config: &NodeConfig) -> u32 {
        let fits = self.fitting_mtu_bytes(config);
        config.datapath.pod_mtu_bytes.map_or(fits, |wanted| wanted.min(fits))
    }

    /// The largest MTU that fits into the underlay.
    fn fitting_mtu_bytes(&self, config: &NodeConfig) -> u32 {
        datapath_plan::pod_mtu_bytes(config.datapath.mode, self.underlay.mtu_bytes)
    }

    /// Computes the base again; there is none while this node has no gateway. All routes depend on it.
    pub(crate) fn refresh_base(&self, cx: &mut Context, gateway: Option<IpAddr>) {
        cx.changes.addresses.extend(self.underlay.addresses.iter().copied());
        cx.changes.addresses.extend(gateway);
        if let Some(base) = gateway.and_then(|gateway| self.base(&cx.config, gateway)) {
            cx.kernel.set(Single, Some(base));
        }
    }

    fn base(&self, config: &NodeConfig, gateway: IpAddr) -> Option<Base> {
        let address = *self.underlay.addresses.first()?;
        let DatapathConfig { mode, host_routing, masquerade, .. } = &config.datapath;
        let masquerade = masquerade.clone().map(|mut masquerade| {
            masquerade.exclude.extend(&config.pools);
            masquerade
        });
        Some(Base {
            gateway,
            tunnel_port: config.tunnel_port,
            mtu_bytes: self.pod_mtu_bytes(config),
            mode: *mode,
            host_routing: *host_routing,
            underlay: BaseUnderlay {
                ifindex: self.underlay.ifindex,
                address,
                mtu_bytes: self.underlay.mtu_bytes,
            },
            masquerade,
        })
    }

    /// Computes the route to a block again. A route that is missing only because not everything is known yet stays.
    pub(crate) fn refresh_route(
        &self,
        cx: &mut Context,
        fleet: &Fleet,
        peers: &Peers,
        gateway: Option<IpAddr>,
        block: IpNetwork,
    ) {
        // A node without a number cannot be reached.
        let owner =
            peers.owner(block).filter(|owner| *owner == fleet.node() || peers.index_of(owner).is_some());
        let route = owner.zip(gateway).and_then(|(owner, source)| {
            let next_hop = match cx.config.datapath.mode {
                Mode::Native if owner != fleet.node() => Some(self.next_hop(&cx.config, peers, owner)?),
                Mode::Native | Mode::Tunnel => None,
            };
            Some(RouteValue { next_hop, source, mtu_bytes: self.pod_mtu_bytes(&cx.config) })
        });
        self.set_route(cx, fleet, block, route);
    }

    /// The route to the service pools, or to a service's address outside them: it leads to this node's own device,
    /// whatever the mode, since the programs behind that device know the services.
    pub(crate) fn refresh_service_route(
        &self,
        cx: &mut Context,
        fleet: &Fleet,
        gateway: Option<IpAddr>,
        destination: IpNetwork,
    ) {
        let route = self.service_route(&cx.config, gateway);
        self.set_route(cx, fleet, destination, route);
    }

    /// The value of every route to services.
    pub(crate) fn service_route(&self, config: &NodeConfig, gateway: Option<IpAddr>) -> Option<RouteValue> {
        Some(RouteValue { next_hop: None, source: gateway?, mtu_bytes: self.pod_mtu_bytes(config) })
    }

    fn set_route(&self, cx: &mut Context, fleet: &Fleet, destination: IpNetwork, route: Option<RouteValue>) {
        let known = fleet.view().is_complete() || cx.kernel.wanted().routes.contains_key(&destination);
        if route.is_some() || known {
            cx.kernel.set(destination, route);
        }
    }

    /// The next hop to a node without a tunnel, if both are on the same network.
    fn next_hop(&self, config: &NodeConfig, peers: &Peers, node: &NodeName) -> Option<NextHop> {
        let address = peers.tunnel_of(node)?;
        let near = self.underlay.network.contains(address);
        let direct = config.datapath.native_routes == NativeRoutes::Direct;
        (direct && near).then_some(NextHop { address, ifindex: self.underlay.ifindex })
    }

    /// What an operator should know of the routes and the MTU.
    pub(crate) fn warnings(&self, config: &NodeConfig, fleet: &Fleet, peers: &Peers) -> Vec<String> {
        let DatapathConfig { mode, native_routes, pod_mtu_bytes, refused, .. } = &config.datapath;
        let mut warnings = Vec::new();
        let fits = self.fitting_mtu_bytes(config);
        if let Some(wanted) = pod_mtu_bytes.filter(|wanted| *wanted > fits) {
            warnings.push(format!(
                "datapath.mtu_bytes is {wanted}, but the underlay carries {fits} at the most, which is used"
            ));
        }
        for (name, entry) in fleet.view().nodes().iter().filter(|(name, _)| *name != fleet.node()) {
            for address in &entry.record.underlay {
                if let Some(network) = refused.iter().find(|network| network.contains(*address)) {
                    warnings.push(format!(
                        "datapath.drop_cidrs has {network}, and node {name} is at {address}: nothing that it sends gets here; \
                         take the network out of it and restart warrend"
                    ));
                }
            }
            let Some(theirs) = &entry.record.datapath_mode else { continue };
            if *theirs != mode.word() {
                warnings.push(format!(
                    "node {name} works with datapath.mode = \"{theirs}\", this node with \"{}\": their endpoints do not reach \
                     each other until all nodes agree",
                    mode.word()
                ));
            }
        }
        if (*mode, *native_routes) == (Mode::Native, NativeRoutes::Direct) {
            let owners: BTreeSet<&NodeName> = peers.owners().filter(|node| *node != fleet.node()).collect();
            let tunnels = owners.into_iter().filter_map(|node| Some((node, peers.tunnel_of(node)?)));
            for (node, address) in tunnels.filter(|(_, address)| !self.underlay.network.contains(*address)) {
                warnings.push(format!(
                    "node {node} at {address} is behind a router ({} is this node's network), so this node makes no route to \
                     its endpoints: let the network route its pod CIDRs, and set datapath.native_routes = \"external\"",
                    self.underlay.network
                ));
            }
        }
        warnings
    }
}
