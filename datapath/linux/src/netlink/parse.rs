//! From the kernel's messages to what we care about in them.

use std::net::IpAddr;

use datapath_plan::Mac;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::{
    AddressFamily,
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric},
};

use super::{Link, Route};

pub(super) fn link(message: &LinkMessage) -> Link {
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
            LinkAttribute::LinkInfo(infos) => parse_info(infos, &mut link),
            _ => {}
        }
    }
    link
}

fn parse_info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = kind_name(kind),
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

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Veth => "veth".into(),
        InfoKind::Vxlan => "vxlan".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let family = message.header.address_family;
    let mut route = Route {
        destination: IpNetwork::new(
            if family == AddressFamily::Inet { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) },
            0,
        )
        .ok()?,
        device: 0,
        source: None,
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
