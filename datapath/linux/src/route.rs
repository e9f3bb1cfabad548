//! Routes to pod CIDRs in the node's main table, marked with our protocol number.

use std::net::IpAddr;

use datapath_plan::RouteValue;
use futures::{StreamExt, stream};
use ipnetwork::IpNetwork;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{
            RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        },
    },
};

use crate::{
    error::DatapathError,
    netlink::{Netlink, Route},
};

/// Requests in flight at once (FACTS: 5,000 routes in 0.15 s).
const IN_FLIGHT: usize = 64;

/// A route to a prefix by a device, to be completed.
pub(crate) fn message(
    destination: IpNetwork,
    device: u32,
) -> Result<RouteMessageBuilder<IpAddr>, DatapathError> {
    Ok(RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix())
        .map_err(unsupported)?
        .output_interface(device))
}

fn unsupported(error: impl std::fmt::Display) -> DatapathError {
    DatapathError::Unsupported(error.to_string())
}

fn ours(
    destination: IpNetwork,
    device: u32,
    value: &RouteValue,
    protocol: u8,
) -> Result<RouteMessage, DatapathError> {
    let device = value.next_hop.map_or(device, |next_hop| next_hop.ifindex);
    let builder = message(destination, device)?
        .pref_source(value.source)
        .map_err(unsupported)?
        .protocol(RouteProtocol::Other(protocol));
    let mut message = match value.next_hop {
        // The plan says that the next hop is on the same network, also where this node's address has no prefix (a /32).
        Some(next_hop) => {
            let mut message = builder.gateway(next_hop.address).map_err(unsupported)?.build();
            message.header.flags |= RouteFlags::Onlink;
            message
        }
        None => builder.scope(RouteScope::Link).build(),
    };
    message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(value.mtu_bytes)]));
    Ok(message)
}

/// Makes or changes routes concurrently. The answers are in the order of the routes.
pub(crate) async fn put_all(
    netlink: &Netlink,
    device: u32,
    protocol: u8,
    routes: Vec<(IpNetwork, RouteValue)>,
) -> Vec<Result<(), DatapathError>> {
    let requests = routes.into_iter().map(|(destination, value)| async move {
        let message = ours(destination, device, &value, protocol)?;
        netlink.put_route(message, destination).await
    });
    stream::iter(requests).buffered(IN_FLIGHT).collect().await
}

/// Deletes routes of ours concurrently; routes that are not there count as deleted.
pub(crate) async fn delete_all(
    netlink: &Netlink,
    protocol: u8,
    destinations: Vec<IpNetwork>,
) -> Vec<Result<(), DatapathError>> {
    let requests = destinations.into_iter().map(|destination| delete(netlink, protocol, destination));
    stream::iter(requests).buffered(IN_FLIGHT).collect().await
}

/// Deletes a route of ours. The kernel matches the protocol number, so that routes of other owners are safe.
pub(crate) async fn delete(
    netlink: &Netlink,
    protocol: u8,
    destination: IpNetwork,
) -> Result<(), DatapathError> {
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix())
        .map_err(unsupported)?
        .protocol(RouteProtocol::Other(protocol))
        // Any scope: the protocol number alone says that the route is ours.
        .scope(RouteScope::NoWhere)
        .build();
    netlink.delete_route(message, destination).await
}

/// All routes of ours in the main table.
pub(crate) async fn list(netlink: &Netlink, protocol: u8) -> Result<Vec<Route>, DatapathError> {
    let mut routes = netlink.routes(AddressFamily::Inet).await?;
    routes.extend(netlink.routes(AddressFamily::Inet6).await?);
    routes.retain(|route| route.protocol == protocol && route.table == u32::from(RouteHeader::RT_TABLE_MAIN));
    Ok(routes)
}
