//! Routes by which the node's own packets to virtual IPs come to the programs: one for each service pool in use, and one
//! for each address of a service that lies in none.

use std::{collections::BTreeSet, net::IpAddr};

use datapath_plan::RouteValue;
use identity::ServiceName;
use ipnetwork::IpNetwork;

use crate::node::Node;

impl Node {
    /// The service pools, or their addresses, have changed: where each service's route leads is looked at again.
    pub(crate) fn service_pools_changed(&mut self) {
        let names = self.services.services.keys().cloned();
        self.services.touched.extend(names);
    }

    /// This node's address or MTU has changed: so do all routes.
    pub(crate) fn refresh_service_routes(&mut self) {
        for destination in self.services.routes.keys().copied().collect::<Vec<_>>() {
            self.reconciler.set(destination, self.service_route());
        }
    }

    /// Notes which addresses a service has from now on; the routes to others are needed no more.
    pub(super) fn use_routes(&mut self, name: &ServiceName, addresses: BTreeSet<IpAddr>) {
        let wanted: BTreeSet<IpNetwork> =
            addresses.into_iter().map(|address| self.pool_of(address)).collect();
        let before = match wanted.is_empty() {
            false => self.services.routes_of.insert(name.clone(), wanted.clone()),
            true => self.services.routes_of.remove(name),
        };
        let before = before.unwrap_or_default();
        for route in wanted.difference(&before) {
            let users = self.services.routes.entry(*route).or_default();
            *users += 1;
            if *users == 1 {
                self.reconciler.set(*route, self.service_route());
            }
        }
        for route in before.difference(&wanted) {
            let Some(users) = self.services.routes.get_mut(route) else { continue };
            *users -= 1;
            if *users == 0 {
                self.services.routes.remove(route);
                self.reconciler.set::<RouteValue>(*route, None);
            }
        }
    }

    /// The service pool that an address lies in, or the address alone.
    fn pool_of(&self, address: IpAddr) -> IpNetwork {
        let fleet = self.view.fleet().map(|fleet| &fleet.record.service_pools);
        let pools = fleet.unwrap_or(&self.config.service_pools);
        pools.iter().copied().find(|pool| pool.contains(address)).unwrap_or_else(|| IpNetwork::from(address))
    }

    /// Whether some service needs this route.
    pub(crate) fn is_service_route(&self, destination: IpNetwork) -> bool {
        self.services.routes.contains_key(&destination)
    }

    /// To this node's own device, whatever the mode: the programs behind it know the services.
    pub(crate) fn service_route(&self) -> Option<RouteValue> {
        let source = self.gateway()?;
        Some(RouteValue { next_hop: None, source, mtu_bytes: self.pod_mtu_bytes() })
    }
}
