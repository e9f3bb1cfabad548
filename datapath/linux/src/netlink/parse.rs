//! From the kernel's messages to what we care about in them.

use std::net::IpAddr;

use datapath_plan::Mac;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric},
};

use super::{Link, Route};

pub(crate) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        noarp: message.header.flags.contains(LinkFlags::Noarp),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu_bytes) => link.mtu_bytes = *mtu_bytes,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::OperState(state) => link.running = *state == State::Up,
            LinkAttribute::Link(peer) => link.peer = *peer,
            LinkAttribute::LinkNetNsId(namespace) => link.peer_namespace = Some(*namespace),
            LinkAttribute::LinkInfo(infos) => parse_info(infos, &mut link),
            _ => {}
        }
    }
    link
}

fn parse_info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = kind.to_string(),
            LinkInfo::Data(InfoData::Vxlan(settings)) => {
                for setting in settings {
                    match setting {
                        InfoVxlan::Port(port) => link.port = *port,
                        InfoVxlan::CollectMetadata(external) => link.external = *external,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// The index of a device and an address of it; link-local ones of IPv6 are nobody's.
pub(crate) fn address(message: &AddressMessage) -> Option<(u32, IpNetwork)> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    let address = find(true).or_else(|| find(false))?;
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let network = IpNetwork::new(address, message.header.prefix_len).ok()?;
    (!link_local).then_some((message.header.index, network))
}

pub(crate) fn route(message: &RouteMessage) -> Option<Route> {
    let family = message.header.address_family;
    let mut route = Route {
        destination: IpNetwork::new(
            if family == AddressFamily::Inet { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) },
            0,
        )
        .ok()?,
        device: 0,
        gateway: None,
        source: None,
        priority: 0,
        mtu_bytes: None,
        protocol: message.header.protocol.into(),
        table: message.header.table.into(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination =
                    IpNetwork::new(ip(address)?, message.header.destination_prefix_length).ok()?;
            }
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(device) => route.device = *device,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::MultiPath(hops) => {
                route.device = hops.first().map_or(0, |hop| hop.interface_index);
            }
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => {
                route.mtu_bytes = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu_bytes) => Some(*mtu_bytes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
