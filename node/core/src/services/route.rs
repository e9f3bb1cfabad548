//! Routes by which the node's own packets to virtual IPs reach the programs: one for each service pool in use, and one
//! for each address of a service outside the pools.

use std::{collections::BTreeSet, net::IpAddr};

use datapath_plan::RouteValue;
use identity::ServiceName;
use ipnetwork::IpNetwork;

use super::Services;
use crate::{context::Context, fleet::Fleet, ipcache::Sources};

impl Services {
    /// Whether some service needs a route.
    pub(crate) fn need_route(&self, destination: IpNetwork) -> bool {
        self.routes.contains_key(&destination)
    }

    /// This node's gateway or MTU has changed, and with it the value of all routes.
    pub(crate) fn refresh_routes(&self, cx: &mut Context, Sources { routing, ipam, .. }: Sources<'_>) {
        for destination in self.routes.keys() {
            cx.kernel.set(*destination, routing.service_route(&cx.config, ipam.gateway()));
        }
    }

    /// Notes which addresses a service has from now on; routes to others are not needed any more.
    pub(super) fn use_routes(
        &mut self,
        cx: &mut Context,
        Sources { fleet, routing, ipam, .. }: Sources<'_>,
        name: &ServiceName,
        addresses: BTreeSet<IpAddr>,
    ) {
        let wanted: BTreeSet<IpNetwork> =
            addresses.into_iter().map(|address| pool_of(cx, fleet, address)).collect();
        let before = match wanted.is_empty() {
            false => self.routes_of.insert(name.clone(), wanted.clone()),
            true => self.routes_of.remove(name),
        };
        let before = before.unwrap_or_default();
        for route in wanted.difference(&before) {
            let users = self.routes.entry(*route).or_default();
            *users += 1;
            if *users == 1 {
                cx.kernel.set(*route, routing.service_route(&cx.config, ipam.gateway()));
            }
        }
        for route in before.difference(&wanted) {
            let Some(users) = self.routes.get_mut(route) else { continue };
            *users -= 1;
            if *users == 0 {
                self.routes.remove(route);
                cx.kernel.set::<RouteValue>(*route, None);
            }
        }
    }
}

/// The service pool that an address lies in, or the address alone.
fn pool_of(cx: &Context, fleet: &Fleet, address: IpAddr) -> IpNetwork {
    let pools = fleet.view().fleet().map(|fleet| &fleet.record.service_pools);
    let mut pools = pools.unwrap_or(&cx.config.service_pools).iter().copied();
    pools.find(|pool| pool.contains(address)).unwrap_or_else(|| IpNetwork::from(address))
}
