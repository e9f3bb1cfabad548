//! Which of the node's addresses carries the tunnel.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use serde::Serialize;

use crate::{
    config::UnderlayChoice,
    error::DatapathError,
    netlink::{Link, Netlink, Route},
};

/// The address that tunnel packets go to and come from, and how it was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Underlay {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
    /// MTU of the interface, bytes.
    pub mtu_bytes: u32,
    /// Why this one, in words, for `status`.
    pub reason: String,
}

/// Chooses by the calling thread's namespace, as it is now.
///
/// # Errors
/// [`DatapathError::NotReady`] with what to set, if nothing fits the choice.
pub async fn underlay(choice: &UnderlayChoice) -> Result<Underlay, DatapathError> {
    let netlink = Netlink::here()?;
    match choice {
        UnderlayChoice::Address(address) => by_address(&netlink, *address).await,
        UnderlayChoice::Interface(name) => by_interface(&netlink, name).await,
        UnderlayChoice::Automatic => by_default_route(&netlink).await,
        UnderlayChoice::Towards(targets) => {
            for target in targets.iter().filter(|target| !target.is_loopback()) {
                if let Some(found) = by_route_to(&netlink, *target).await? {
                    return Ok(found);
                }
            }
            by_default_route(&netlink).await
        }
    }
}

async fn by_address(netlink: &Netlink, address: IpAddr) -> Result<Underlay, DatapathError> {
    for link in netlink.links().await? {
        if netlink.addresses(link.index).await?.iter().any(|network| network.ip() == address) {
            return Ok(made(link, address, "the configured address".into()));
        }
    }
    Err(DatapathError::NotReady(format!(
        "underlay address {address} is on no interface of this node: give it to one, or configure another"
    )))
}

async fn by_interface(netlink: &Netlink, name: &str) -> Result<Underlay, DatapathError> {
    let link = netlink.link(name).await?.ok_or_else(|| {
        DatapathError::NotReady(format!("underlay interface {name} is not there: configure another"))
    })?;
    match first_address(netlink, &link).await? {
        Some(address) => Ok(made(link, address, "the configured interface".into())),
        None => Err(DatapathError::NotReady(format!("underlay interface {name} has no IPv4 address"))),
    }
}

async fn by_route_to(netlink: &Netlink, target: IpAddr) -> Result<Option<Underlay>, DatapathError> {
    match netlink.route_to(target).await? {
        Some(route) => from_route(netlink, &route, format!("the route to {target}")).await,
        None => Ok(None),
    }
}

async fn by_default_route(netlink: &Netlink) -> Result<Underlay, DatapathError> {
    let routes = netlink.routes(AddressFamily::Inet).await?;
    for route in routes.iter().filter(|route| route.destination.prefix() == 0) {
        if let Some(found) = from_route(netlink, route, "the default route".into()).await? {
            return Ok(found);
        }
    }
    Err(DatapathError::NotReady(
        "no default route tells which address other nodes reach this one by: configure the underlay's address or \
         interface"
            .into(),
    ))
}

/// The address by which packets leave on a route; none where it leads to this node itself or to its endpoints.
async fn from_route(
    netlink: &Netlink,
    route: &Route,
    reason: String,
) -> Result<Option<Underlay>, DatapathError> {
    let links = netlink.links().await?;
    let Some(link) = links.into_iter().find(|link| link.index == route.device) else { return Ok(None) };
    if link.is_ours() || link.loopback {
        return Ok(None);
    }
    let address = match route.source {
        Some(source) => Some(source),
        None => first_address(netlink, &link).await?,
    };
    Ok(address.map(|address| made(link, address, reason)))
}

async fn first_address(netlink: &Netlink, link: &Link) -> Result<Option<IpAddr>, DatapathError> {
    let addresses = netlink.addresses(link.index).await?;
    Ok(addresses.into_iter().map(|network| network.ip()).find(IpAddr::is_ipv4))
}

fn made(link: Link, address: IpAddr, reason: String) -> Underlay {
    Underlay { interface: link.name, ifindex: link.index, address, mtu_bytes: link.mtu_bytes, reason }
}
