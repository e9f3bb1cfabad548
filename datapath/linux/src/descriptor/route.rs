//! Routes: in the node's main table, marked with our protocol number.

use std::net::Ipv4Addr;

use datapath_plan::{NextHop, RouteValue};
use ipnetwork::IpNetwork;

use super::{Answer, KernelTable, Observation, Progress, repeat};
use crate::{datapath::Datapath, device::HOST_DEVICE, route};

impl KernelTable for RouteValue {
    async fn put(datapath: &mut Datapath, rows: &[(IpNetwork, &Self)], _: &Progress<'_>) -> Vec<Answer> {
        let device = match datapath.netlink.expect_link(HOST_DEVICE).await {
            Ok(link) => link.index,
            Err(error) => return repeat(rows.len(), &error),
        };
        let routes = rows.iter().map(|(destination, value)| (*destination, **value)).collect();
        route::put_all(&datapath.netlink, device, datapath.config.route_protocol, routes).await
    }

    async fn delete(datapath: &mut Datapath, destinations: &[IpNetwork]) -> Vec<Answer> {
        route::delete_all(&datapath.netlink, datapath.config.route_protocol, destinations.to_vec()).await
    }

    /// A route of ours that is not as we make routes is shown as one that nobody wants.
    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let Observation { observed, links, .. } = observation;
        let Some(host) = links.iter().find(|link| link.name == HOST_DEVICE && link.is_ours()) else {
            return Ok(());
        };
        for route in route::list(&datapath.netlink, datapath.config.route_protocol).await? {
            let next_hop = route.gateway.map(|address| NextHop { address, ifindex: route.device });
            let value = match (route.source, route.mtu_bytes) {
                (Some(source), Some(mtu_bytes)) if next_hop.is_some() || route.device == host.index => {
                    Self { next_hop, source, mtu_bytes }
                }
                _ => {
                    observed.broken.push(format!("route {}: not as we make them", route.destination));
                    Self { next_hop: None, source: Ipv4Addr::UNSPECIFIED.into(), mtu_bytes: 0 }
                }
            };
            observed.tables.routes.insert(route.destination, value);
        }
        Ok(())
    }
}
