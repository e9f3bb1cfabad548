//! The choice of the address that carries the traffic between nodes, and its reason.
//!
//! The stack is read whole, and the choice is made by a function of what was read (`choose.rs`).

mod choose;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::{AddressFamily, route::RouteHeader};
use serde::Serialize;

use crate::{
    config::UnderlayChoice,
    error::DatapathError,
    netlink::{Link, Netlink, Route},
};

/// The address that other nodes send to, and the reason of the choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Underlay {
    /// The interface's name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// The network that the address is in: what is inside is reached without a router.
    pub network: IpNetwork,
    /// MTU of the interface, bytes.
    pub mtu_bytes: u32,
    /// The reason of the choice, in words, for `status`.
    pub reason: String,
    /// The other interfaces, and the reasons against them.
    pub passed_over: Vec<PassedOver>,
}

/// An interface that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// Its name.
    pub interface: String,
    /// The reason, in words.
    pub reason: String,
}

/// The state of the stack that the choice depends on.
#[derive(Debug, Default)]
struct Stack {
    /// Devices that are neither ours nor the loopback, with their addresses of global scope.
    devices: Vec<Device>,
    /// Default routes of the main table, the best first.
    defaults: Vec<Route>,
    /// The routes to the addresses that must be reached.
    ways: Vec<(IpAddr, Route)>,
}

#[derive(Debug)]
struct Device {
    link: Link,
    addresses: Vec<IpNetwork>,
}

/// Chooses by the calling thread's namespace, as it is now. `former`: what is in use; it is kept while it is there and
/// nothing points elsewhere, so that a route that is gone for a moment moves nobody.
///
/// # Errors
/// [`DatapathError::NotReady`] with what to set, if nothing fits the choice.
pub async fn underlay(choice: &UnderlayChoice, former: Option<&Underlay>) -> Result<Underlay, DatapathError> {
    choose::choose(choice, &read(choice).await?, former)
}

async fn read(choice: &UnderlayChoice) -> Result<Stack, DatapathError> {
    let netlink = Netlink::here()?;
    let mut stack = Stack::default();
    let mut addresses = netlink.all_addresses().await?;
    for link in netlink.links().await? {
        if !link.is_ours() && !link.loopback {
            let addresses = addresses.remove(&link.index).unwrap_or_default();
            stack.devices.push(Device { link, addresses });
        }
    }
    stack.defaults = netlink.routes(AddressFamily::Inet).await?;
    stack.defaults.retain(|route| {
        route.destination.prefix() == 0 && route.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    });
    stack.defaults.sort_by_key(|route| route.priority);
    if let UnderlayChoice::Towards(targets) = choice {
        for target in targets.iter().filter(|target| target.is_ipv4() && !target.is_loopback()) {
            if let Some(route) = netlink.route_to(*target).await? {
                stack.ways.push((*target, route));
            }
        }
    }
    Ok(stack)
}
