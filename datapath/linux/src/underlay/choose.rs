//! The choice itself: what is configured, else the way to etcd, else the default route, else what was in use, else the
//! only device that it can be.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Device, PassedOver, Stack, Underlay};
use crate::{config::UnderlayChoice, error::DatapathError, netlink::Route};

/// Kinds of devices that lead to other machines by themselves: network cards (no kind), and what is made of them. Any
/// other (a bridge, a container's veth, a tunnel) must be named, or be where routes lead.
const PHYSICAL: [&str; 6] = ["", "bond", "team", "vlan", "macvlan", "ipvlan"];

/// What to type when the choice is wrong.
const REMEDY: &str = "set datapath.underlay_interface or datapath.underlay_address";

pub(super) fn choose(
    choice: &UnderlayChoice,
    stack: &Stack,
    former: Option<&Underlay>,
) -> Result<Underlay, DatapathError> {
    let chosen = match choice {
        UnderlayChoice::Address(address) => by_address(stack, *address)?,
        UnderlayChoice::Interface(name) => by_interface(stack, name, former)?,
        UnderlayChoice::Automatic | UnderlayChoice::Towards(_) => by_routes(stack, former)
            .or_else(|| kept(stack, former))
            .map_or_else(|| only_candidate(stack), Ok)?,
    };
    Ok(made(stack, chosen))
}

/// A device, one of its addresses, and why.
struct Chosen<'a> {
    device: &'a Device,
    network: IpNetwork,
    reason: String,
}

fn by_address(stack: &Stack, address: IpAddr) -> Result<Chosen<'_>, DatapathError> {
    if address.is_ipv6() {
        return Err(not_ready(
            stack,
            format!("underlay address {address} is of IPv6, which this version cannot use between nodes"),
        ));
    }
    let found = stack.devices.iter().find_map(|device| {
        let network = *device.addresses.iter().find(|network| network.ip() == address)?;
        Some(Chosen { device, network, reason: "the configured address".into() })
    });
    found.ok_or_else(|| {
        not_ready(stack, format!("underlay address {address} is on no interface of this node: give it to one, or configure another"))
    })
}

fn by_interface<'a>(
    stack: &'a Stack,
    name: &str,
    former: Option<&Underlay>,
) -> Result<Chosen<'a>, DatapathError> {
    let device = stack.devices.iter().find(|device| device.link.name == name).ok_or_else(|| {
        not_ready(
            stack,
            format!(
                "underlay interface {name} is not there, or is not one that can be used: configure another"
            ),
        )
    })?;
    match address_on(device, former) {
        Some(network) => Ok(Chosen { device, network, reason: "the configured interface".into() }),
        None => Err(not_ready(stack, format!("underlay interface {name} has no IPv4 address"))),
    }
}

fn by_routes<'a>(stack: &'a Stack, former: Option<&Underlay>) -> Option<Chosen<'a>> {
    let ways = stack.ways.iter().map(|(target, route)| (route, format!("the route to {target}")));
    let defaults = stack.defaults.iter().map(|route| (route, "the default route".to_owned()));
    ways.chain(defaults).find_map(|(route, reason)| {
        let (device, network) = by_route(stack, route, former)?;
        Some(Chosen { device, network, reason })
    })
}

/// The address by which packets leave on a route; none where it leads to this node itself or to its endpoints.
fn by_route<'a>(
    stack: &'a Stack,
    route: &Route,
    former: Option<&Underlay>,
) -> Option<(&'a Device, IpNetwork)> {
    let device = stack.devices.iter().find(|device| device.link.index == route.device)?;
    let on_device =
        |address: IpAddr| device.addresses.iter().find(|network| network.ip() == address).copied();
    // A route's own source may be a mere consequence of the order of addresses: what is in use stays.
    let in_use = former.and_then(|former| on_device(former.address));
    let network = in_use.or(route.source.and_then(on_device)).or(address_on(device, None))?;
    Some((device, network))
}

/// What is in use, for as long as it is there.
fn kept<'a>(stack: &'a Stack, former: Option<&Underlay>) -> Option<Chosen<'a>> {
    let former = former?;
    let device = stack.devices.iter().find(|device| device.link.name == former.interface)?;
    let network = *device.addresses.iter().find(|network| network.ip() == former.address)?;
    Some(Chosen { device, network, reason: former.reason.clone() })
}

fn only_candidate(stack: &Stack) -> Result<Chosen<'_>, DatapathError> {
    let mut candidates = stack.devices.iter().filter(|device| unfit(device).is_none());
    let (first, second) = (candidates.next(), candidates.next());
    match (first.and_then(|device| Some((device, address_on(device, None)?))), second) {
        (Some((device, network)), None) => {
            Ok(Chosen { device, network, reason: "the only candidate".into() })
        }
        (Some(_), Some(_)) => Err(not_ready(
            stack,
            format!(
                "no default route tells which address other nodes reach this one by, and there are several: {REMEDY}"
            ),
        )),
        (None, _) => Err(not_ready(
            stack,
            format!("no default route tells which address other nodes reach this one by: {REMEDY}"),
        )),
    }
}

/// The address in use, if the device has it; else its first.
fn address_on(device: &Device, former: Option<&Underlay>) -> Option<IpNetwork> {
    let mut addresses = device.addresses.iter().filter(|network| network.is_ipv4());
    let used =
        former.and_then(|former| device.addresses.iter().find(|network| network.ip() == former.address));
    used.or_else(|| addresses.next()).copied()
}

/// Why a device that nobody named is none.
fn unfit(device: &Device) -> Option<String> {
    if !device.link.up {
        Some("is down".into())
    } else if !PHYSICAL.contains(&device.link.kind.as_str()) {
        Some(format!("a {} device: must be named to be used", device.link.kind))
    } else if address_on(device, None).is_none() {
        Some("has no IPv4 address".into())
    } else {
        None
    }
}

/// Virtual devices without an address are nobody's idea of an underlay: a machine may have hundreds.
fn passed_over(stack: &Stack, chosen: Option<&Chosen<'_>>) -> Vec<PassedOver> {
    let worth_a_word =
        |device: &&Device| !device.addresses.is_empty() || PHYSICAL.contains(&device.link.kind.as_str());
    let others = stack
        .devices
        .iter()
        .filter(|device| chosen.is_none_or(|chosen| chosen.device.link.index != device.link.index));
    let why = |device: &Device| match (unfit(device), chosen) {
        (Some(reason), _) => reason,
        (None, Some(chosen)) if chosen.reason == "the configured address" => "has another address".into(),
        (None, Some(chosen)) if chosen.reason == "the configured interface" => {
            "another one is configured".into()
        }
        (None, Some(chosen)) => format!("is not {}'s", chosen.reason),
        (None, None) => "could be it".into(),
    };
    others
        .filter(worth_a_word)
        .map(|device| PassedOver { interface: device.link.name.clone(), reason: why(device) })
        .collect()
}

fn made(stack: &Stack, chosen: Chosen<'_>) -> Underlay {
    let link = &chosen.device.link;
    Underlay {
        interface: link.name.clone(),
        ifindex: link.index,
        address: chosen.network.ip(),
        network: chosen.network,
        mtu_bytes: link.mtu_bytes,
        passed_over: passed_over(stack, Some(&chosen)),
        reason: chosen.reason,
    }
}

fn not_ready(stack: &Stack, mut text: String) -> DatapathError {
    for PassedOver { interface, reason } in passed_over(stack, None) {
        text += &format!("; {interface} {reason}");
    }
    DatapathError::NotReady(text)
}

#[cfg(test)]
mod tests;
